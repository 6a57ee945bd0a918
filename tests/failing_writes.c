/* Loaded before the C library: write number FAIL_AT (from 1) to a file whose name ends in
   FAIL_SUFFIX fails with EIO, as on a disk that is dying; all others succeed. For each such write
   FAIL_LOG, if set, grows by a byte. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(int handle)
{
    static int count;
    char link[64], path[4096];
    const char *suffix = getenv("FAIL_SUFFIX"), *at = getenv("FAIL_AT");
    if (!suffix || !at)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t wanted = strlen(suffix);
    if (length < (ssize_t)wanted || strncmp(path + length - wanted, suffix, wanted))
        return 0;
    if (getenv("FAIL_LOG")) {
        int log = open(getenv("FAIL_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0666);
        if (write(log, ".", 1) != 1)
            abort();
        close(log);
    }
    if (__sync_add_and_fetch(&count, 1) != atoi(at))
        return 0;
    errno = EIO;
    return 1;
}

#define FORWARD(name, parameters, arguments)                             \
    ssize_t name parameters                                              \
    {                                                                    \
        static ssize_t (*real) parameters;                               \
        if (fails(handle))                                               \
            return -1;                                                   \
        if (!real)                                                       \
            real = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #name);       \
        return real arguments;                                           \
    }

FORWARD(write, (int handle, const void *data, size_t size), (handle, data, size))
FORWARD(pwrite, (int handle, const void *data, size_t size, off_t at), (handle, data, size, at))
FORWARD(pwrite64, (int handle, const void *data, size_t size, off64_t at), (handle, data, size, at))
FORWARD(writev, (int handle, const struct iovec *parts, int count), (handle, parts, count))
