#!/bin/sh
# @id@: greets, and counts how often. It speaks stdio-json-v1: one process per invocation.
#
# No other program is run. JSON is taken apart no further than can be right without a parser: a line of the host has no
# white space between its parts, "action" comes first, and a quote within a text is always escaped.

say() { # a line for the host
    printf '%s\n' "$1"
}

fail() { # the final reply; $1 is a JSON text, with its quotes
    say "{\"ok\":false,\"message\":$1,\"result\":null,\"error\":$1}"
    exit 0
}

host_call() { # id, method, params -> $result; ends the invocation when the host refuses
    say "{\"host_call\":{\"id\":\"$1\",\"method\":\"$2\",\"params\":$3}}"
    IFS= read -r answer <&"$LATTICE_HOST_RESPONSE_FD" || fail '"the host has ended"'
    case $answer in
    "{\"host_response\":{\"id\":\"$1\",\"ok\":true,\"result\":"*)
        result=${answer#*,\"result\":}
        result=${result%,\"error\":null\}\}}
        ;;
    *)
        error=${answer#*,\"error\":}
        fail "${error%\}\}}"
        ;;
    esac
}

IFS= read -r request || fail '"expected a request on standard input"'
case $request in
'{"action":"describe",'*)
    say '{"ok":true,"message":"greets, and counts how often","result":{"actions":["greet"]},"error":null}'
    ;;
'{"action":"health",'*)
    say '{"ok":true,"message":"","result":null,"error":null}'
    ;;
'{"action":"greet","payload":{"name":"'*'"}}')
    name=${request#*\"name\":}
    name=${name%\}\}} # a JSON text, with its quotes
    case $name in *'","'*) fail '"expected {\"name\": text}"' ;; esac
    host_call 1 kv.get '{"key":"count"}'
    count=0
    case $result in *'"value":"'*) count=${result#*\"value\":\"} count=${count%%\"*} ;; esac
    count=$((count + 1))
    host_call 2 kv.put "{\"key\":\"count\",\"value\":\"$count\"}"
    echo "greeted, $count times so far" >&2 # the log
    say "{\"ok\":true,\"message\":\"\",\"result\":{\"hello\":$name,\"count\":$count},\"error\":null}"
    ;;
'{"action":"greet",'*)
    fail '"expected {\"name\": text}"'
    ;;
*)
    fail '"no such action"'
    ;;
esac
