#!/bin/sh
# Shows what is kept under a key: a plugin in plain sh that speaks stdio-json-v1, one process per invocation.
#
# No other program is run and nothing is forked, so it needs no more than a shell. JSON is taken apart no further than
# can be right without a parser: a line of the host has no white space between its parts, "action" comes first, a quote
# within a text is always escaped. Keys that would need escapes are refused, results are handed on as they came.

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
    say '{"ok":true,"message":"shows what is kept","result":{"actions":["look"]},"error":null}'
    ;;
'{"action":"health",'*)
    say '{"ok":true,"message":"healthy","result":null,"error":null}'
    ;;
'{"action":"look","payload":{"key":"'*'"}}') # kv:read
    key=${request#*\"key\":\"}
    key=${key%\"\}\}}
    case $key in *[\"\\]*) fail '"expected a key without quotes and backslashes"' ;; esac
    host_call 1 kv.get "{\"key\":\"$key\"}"
    say "{\"ok\":true,\"message\":\"\",\"result\":$result,\"error\":null}"
    ;;
'{"action":"look",'*)
    fail '"expected a payload of {\"key\": text}"'
    ;;
*)
    fail '"no such action"'
    ;;
esac
