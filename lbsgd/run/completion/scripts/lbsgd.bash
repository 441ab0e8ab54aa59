# Completion of lbsgd for bash: eval "$(lbsgd completion bash)" in ~/.bashrc
_lbsgd() {
    local line=${COMP_LINE:0:COMP_POINT} last=${COMP_WORDS[COMP_CWORD]} program=${1/#\~/$HOME}
    local words word answer path
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]} - 1]}
    # Bash takes = and : for ends of words, and replaces what follows the last of them alone.
    [[ $last == [=:] ]] && last=""
    COMPREPLY=()
    while IFS= read -r answer; do
        case $answer in
        :folders | :files)
            compopt -o filenames 2>/dev/null
            [[ $answer == :folders ]] && answer=-d || answer=-f
            while IFS= read -r path; do
                COMPREPLY+=("$path")
            done < <(compgen "$answer" -- "$last")
            ;;
        "$word"*)
            [[ $answer == *[=:.] ]] && compopt -o nospace 2>/dev/null
            COMPREPLY+=("${answer#"${word%"$last"}"}")
            ;;
        esac
    done < <("$program" completion words -- "${words[@]:1}" 2>/dev/null)
}
complete -F _lbsgd lbsgd
