/* A plugin of latticed-stdio-1 that says which bytes it is made of: a test writes another mark over the one below. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile const char mark[] = "MARK:verified";

int main(void)
{
    char said[sizeof mark], line[4096];
    for (size_t i = 0; i < sizeof mark; i++)
        said[i] = mark[i];
    fprintf(stderr, "%s\n", said + 5);
    while (fgets(line, sizeof line, stdin)) {
        char *id = strstr(line, "\"id\":");
        if (!id)
            return 3;
        printf("{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{\"ok\":true,\"message\":\"%s\"}}\n", atol(id + 5), said + 5);
        fflush(stdout);
    }
    return 0;
}
