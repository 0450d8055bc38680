_ccsnet_expand() {  # what an entry stands for, and the beginning of the word
    local one
    for one in $1; do
        case $one in
        @path) compgen -f -- "$2" ;;
        @dataset)
            _ccsnet_names datasets
            compgen -W "$REPLY" -- "$2"
            compgen -d -- "$2"
            ;;
        @run)
            if [ -n "$(compgen -W "$(_ccsnet_runs)" -- "$2")" ]; then
                compgen -W "$(_ccsnet_runs)" -- "$2"
            else
                compgen -f -- "$2"
            fi
            ;;
        @*)
            _ccsnet_names "${one#@}"
            compgen -W "$REPLY" -- "$2"
            ;;
        *) compgen -W "$one" -- "$2" ;;
        esac
    done
}
_ccsnet_complete() {
    local current=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} first=2 kind=verbs entry= REPLY=
    [ "$current" = = ] && current=
    if [ "$COMP_CWORD" -eq 1 ]; then
        verb=
    else
        _ccsnet_verbs "$verb"
        if [ -n "$REPLY" ]; then
            first=3
            [ "$COMP_CWORD" -gt 2 ] && verb="$verb ${COMP_WORDS[2]}" kind=
        else
            kind=
        fi
        if [ -z "$kind" ]; then
            _ccsnet_state "$verb" "$current" "${COMP_WORDS[@]:first:COMP_CWORD-first}"
        fi
    fi
    local IFS=$'\n'
    case $kind in
    value) COMPREPLY=($(IFS=$' \n'; _ccsnet_expand "$entry" "$current")) ;;
    *)
        "_ccsnet_$kind" "$verb"
        COMPREPLY=($(compgen -W "$(printf '%s\n' "$REPLY" | cut -d: -f1)" -- "$current"))
        ;;
    esac
}
complete -o filenames -F _ccsnet_complete ccsnet
