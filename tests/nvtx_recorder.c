/* A tool as Nsight Systems is one, as small as can be: writes the NVTX ranges of a process to a file.

   Comes in: NVTX_INJECTION64_PATH names this library, RECORDED the file. Goes out: a line for each
   range, "thread depth name". The numbers are NVTX's, from its header nvtx3/nvtxDetail/nvtxTypes.h. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CALLBACKS = 1, CORE = 1, RANGE_PUSH = 9, RANGE_POP = 11 };

struct callbacks {
    size_t size;
    int (*functions)(int module, void ****table, unsigned *count);
};

static FILE *file;
static __thread int depth;

static int push(const char *name)
{
    fprintf(file, "%ld %d %s\n", syscall(SYS_gettid), depth, name);
    fflush(file);
    return depth++;
}

static int pop(void)
{
    return --depth;
}

int InitializeInjectionNvtx2(const void *(*export_table)(unsigned))
{
    const struct callbacks *callbacks = export_table(CALLBACKS);
    void ***table;
    unsigned count;
    file = fopen(getenv("RECORDED"), "w");
    if (!file || !callbacks || !callbacks->functions(CORE, &table, &count) || count <= RANGE_POP)
        return 0;
    *table[RANGE_PUSH] = (void *)push;
    *table[RANGE_POP] = (void *)pop;
    return 1;
}
