function __ccsnet_names
    switch $argv[1]
NAMES
    end
end
function __ccsnet_runs
    for file in runs/{*,*/*,*/*/*}/{best,last}.safetensors
        string replace -r '/[^/]*$' '' $file
    end | sort -u
    __fish_complete_path (commandline -ct)
end
function __ccsnet_in  # the command, all of its words
    set -l words (commandline -opc)
    set -e words[1]
    string match -q -- "$argv *" "$words "
end
function __ccsnet_at  # the number of words behind the command, none of them an option
    set -l words (commandline -opc)
    set -e words[1]
    set -l number $argv[1]
    set -e argv[1]
    test (count $argv) -eq 0; or string match -q -- "$argv *" "$words "; or return 1
    string match -q -- '-*' $words; and return 1
    set -l place (math (count $words) - (count $argv))
    string match -q '*+' $number; and test $place -ge (string trim -c + $number); and return 0
    test $place = $number
end
function __ccsnet_after  # the last option, and the command
    set -l options (string match -- '-*' (commandline -opc))
    test "$options[-1]" = $argv[1]; and __ccsnet_in $argv[2..]
end
complete -c ccsnet -f
