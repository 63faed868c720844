/* The least that verifying can cost: SHA-256 of every ROOT/<name>/artifact with OpenSSL, 256 KiB reads, N threads.
 * usage: hash_loop ROOT THREADS; prints the number of files hashed. */
#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFER (256 * 1024)

static char **paths;
static size_t count, room;
static atomic_size_t next_path, hashed;

static void *work(void *unused) {
    (void)unused;
    unsigned char *buffer = malloc(BUFFER), digest[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    const EVP_MD *sha256 = EVP_sha256();
    for (;;) {
        size_t mine = atomic_fetch_add(&next_path, 1);
        if (mine >= count) break;
        int fd = open(paths[mine], O_RDONLY | O_CLOEXEC);
        if (fd < 0) { perror(paths[mine]); exit(1); }
        EVP_DigestInit_ex(context, sha256, NULL);
        ssize_t got;
        while ((got = read(fd, buffer, BUFFER)) > 0) EVP_DigestUpdate(context, buffer, (size_t)got);
        if (got < 0) { perror(paths[mine]); exit(1); }
        unsigned int length;
        EVP_DigestFinal_ex(context, digest, &length);
        close(fd);
        atomic_fetch_add(&hashed, 1);
    }
    EVP_MD_CTX_free(context);
    free(buffer);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    DIR *root = opendir(argv[1]);
    if (root == NULL) { perror(argv[1]); return 1; }
    for (struct dirent *entry; (entry = readdir(root)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        if (count == room) paths = realloc(paths, (room = room ? 2 * room : 1024) * sizeof *paths);
        size_t size = strlen(argv[1]) + strlen(entry->d_name) + sizeof "//artifact";
        paths[count] = malloc(size);
        snprintf(paths[count++], size, "%s/%s/artifact", argv[1], entry->d_name);
    }
    closedir(root);
    int threads = atoi(argv[2]);
    pthread_t crew[64];
    if (threads < 1 || threads > 64) return 2;
    for (int i = 0; i < threads; i++) pthread_create(&crew[i], NULL, work, NULL);
    for (int i = 0; i < threads; i++) pthread_join(crew[i], NULL);
    printf("%zu\n", (size_t)hashed);
    return 0;
}
