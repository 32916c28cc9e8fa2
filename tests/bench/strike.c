/* Preloaded into a test's process: counts the calls that change files below one folder, and strikes at the N-th.
   error 0: the process is killed there. Otherwise that call and all later ones fail with this errno. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[1024];
static long calls, target;
static int failure;

void strike_at(const char *folder, long n, int error) {
    snprintf(root, sizeof root, "%s", folder);
    calls = 0;
    target = n;
    failure = error;
}

long strike_calls(void) { return calls; }

static int below(const char *path) { return root[0] && path && !strncmp(path, root, strlen(root)); }

static int open_below(int file) {
    char link[64], path[1024];
    if (!root[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return below(path);
}

static int struck(int counts) {
    if (!counts) return 0;
    calls++;
    if (!target || (failure ? calls < target : calls != target)) return 0;
    if (!failure) kill(getpid(), SIGKILL);
    errno = failure;
    return 1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        mode_t mode = 0; \
        va_list rest; \
        va_start(rest, flags); \
        if (flags & O_CREAT) mode = va_arg(rest, mode_t); \
        va_end(rest); \
        return struck((flags & O_CREAT) && below(path)) ? -1 : real(path, flags, mode); \
    }
#define PWRITE(name, offset) \
    ssize_t name(int file, const void *data, size_t size, offset at) { \
        REAL(ssize_t, name, int, const void *, size_t, offset); \
        return struck(open_below(file)) ? -1 : real(file, data, size, at); \
    }
#define SYNC(name) \
    int name(int file) { \
        REAL(int, name, int); \
        return struck(open_below(file)) ? -1 : real(file); \
    }
#define RESIZE(name, length) \
    int name(int file, length size) { \
        REAL(int, name, int, length); \
        return struck(open_below(file)) ? -1 : real(file, size); \
    }

OPEN(open)
OPEN(open64)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
SYNC(fsync)
SYNC(fdatasync)
RESIZE(ftruncate, off_t)
RESIZE(ftruncate64, off64_t)

ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    return struck(file > 2 && open_below(file)) ? -1 : real(file, data, size);
}
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    return struck(below(from)) ? -1 : real(from, to);
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    return struck(below(path)) ? -1 : real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    return struck(below(path)) ? -1 : real(path, mode);
}
