/* The smallest latticed-stdio-1 plugin: answers each line that has an id as healthy and done. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
    static char line[1 << 16];
    while (fgets(line, sizeof line, stdin)) {
        const char *id = strstr(line, "\"id\":");
        if (id == NULL) continue;
        printf("{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{\"status\":\"healthy\",\"ok\":true}}\n", atol(id + 5));
        fflush(stdout);
    }
    return 0;
}
