/* The addresses of a name, one a line, as this program's C library finds them; IPv4 alone if a
   second word says so. Exit 1: none. For musl, without a shell
   or tools that are built with it. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **words) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
    if (count < 2)
        return 2;
    if (count > 2)
        hints.ai_family = AF_INET;
    int failed = getaddrinfo(words[1], NULL, &hints, &found);
    if (failed) {
        fprintf(stderr, "%s: %s\n", words[1], gai_strerror(failed));
        return 1;
    }
    for (each = found; each; each = each->ai_next) {
        char host[64];
        if (getnameinfo(each->ai_addr, each->ai_addrlen, host, sizeof host, NULL, 0, NI_NUMERICHOST))
            return 2;
        puts(host);
    }
    return 0;
}
