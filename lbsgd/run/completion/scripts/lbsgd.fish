# Completion of lbsgd for fish: lbsgd completion fish > ~/.config/fish/completions/lbsgd.fish
function __lbsgd_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l flag (string match -r -- '^--[^=]*=' $current)
    for answer in (eval $words[1] completion words -- (string escape -- $words[2..] $current) 2>/dev/null)
        switch $answer
            case ':folders'
                __fish_complete_directories (string replace -- "$flag" '' $current) '' | string replace -r '^' -- "$flag"
            case ':files'
                __fish_complete_path (string replace -- "$flag" '' $current) '' | string replace -r '^' -- "$flag"
            case '*'
                echo $answer
        end
    end
end
complete -c lbsgd -f -a '(__lbsgd_complete)'
