_ccsnet_expand() {  # what an entry stands for
    local one
    local -a found
    for one in ${=1}; do
        case $one in
        @path) _files ;;
        @dataset)
            _ccsnet_names datasets
            compadd -- ${=REPLY}
            _files -/
            ;;
        @run)
            found=(${(f)"$(setopt null_glob; _ccsnet_runs)"})
            compadd -- $found || _files
            ;;
        @*)
            _ccsnet_names ${one#@}
            compadd -- ${=REPLY}
            ;;
        *) compadd -- $one ;;
        esac
    done
}
_ccsnet() {
    local current=$words[CURRENT] verb=${words[2]-} first=3 kind=verbs entry= REPLY=
    local -a rows
    if (( CURRENT == 2 )); then
        verb=
    else
        _ccsnet_verbs $verb
        if [[ -n $REPLY ]]; then
            first=4
            (( CURRENT > 3 )) && verb="$verb $words[3]" kind=
        else
            kind=
        fi
        [[ -z $kind ]] && _ccsnet_state $verb "$current" "${(@)words[first,CURRENT-1]}"
    fi
    case $kind in
    value) _ccsnet_expand $entry ;;
    *)
        _ccsnet_$kind "$verb"
        rows=(${(f)REPLY})
        _describe $kind rows
        ;;
    esac
}
if [[ ${funcstack[1]-} == _ccsnet ]]; then _ccsnet "$@"; else compdef _ccsnet ccsnet; fi
