# What bash and zsh do alike: from the words before the cursor to what may come, in `kind` (verbs,
# options or value) and `entry`. A word in COMP_WORDBREAKS, such as = of --head=ccs, stands alone.
_ccsnet_state() {  # verb, the word at the cursor, the words between
    local verb=$1 current=$2 option= word num=0 place=0
    shift 2
    for word in "$@"; do
        case $word in
        =) ;;
        -*) option=$word num=0 ;;
        *) if [ -n "$option" ]; then num=$((num + 1)); else place=$((place + 1)); fi ;;
        esac
    done
    kind=options entry=
    case $current in -*) return ;; esac
    if [ -n "$option" ]; then
        _ccsnet_value "$verb" "$option"
        case $REPLY in
        '') return ;;
        1*) [ $num -gt 0 ] && return ;;
        esac
    else
        _ccsnet_word "$verb" $place
        while [ -z "$REPLY" ] && [ $place -gt 0 ]; do
            place=$((place - 1))
            _ccsnet_word "$verb" $place
            case $REPLY in 1*) REPLY= place=0 ;; esac
        done
        [ -z "$REPLY" ] && return
    fi
    kind=value entry=${REPLY#* }
}
_ccsnet_runs() {
    local file
    for file in \
        runs/*/{best,last}.safetensors \
        runs/*/*/{best,last}.safetensors \
        runs/*/*/*/{best,last}.safetensors; do
        [ -e "$file" ] && printf '%s\n' "${file%/*}"
    done | sort -u
}
