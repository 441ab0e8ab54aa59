#compdef lbsgd
# Completion of lbsgd for zsh: eval "$(lbsgd completion zsh)" in ~/.zshrc, after compinit
_lbsgd() {
    local answer ask=""
    local -a whole open
    local -a answers=("${(@f)$($~words[1] completion words -- "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    for answer in $answers; do
        case $answer in
        :folders | :files) ask=$answer ;;
        *[=:.]) open+=("$answer") ;;
        *) whole+=("$answer") ;;
        esac
    done
    compadd -Q -S "" -a open
    compadd -Q -a whole
    [[ -n $ask && $PREFIX == --*=* ]] && compset -P "*="
    case $ask in
    :folders) _path_files -/ ;;
    :files) _files ;;
    esac
}
compdef _lbsgd lbsgd
