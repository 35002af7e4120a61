/* A stand-in for the NVIDIA driver (libcuda.so.1) whose GPU is the CPU: memory is host memory, work is done at once.
 *
 * It has what the two packages for device memory call, so that their own code runs where there is no GPU. Copies on a
 * stream in capture are kept, and done when the graph is launched. It computes nothing and stands for no speed.
 * Compiled by tests/engines/cuda/test_memory.py: gcc -shared -fPIC -Wl,-soname,libcuda.so.1
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, CAPTURE = 900 };
#define LIMIT ((uint64_t)1 << 30)

typedef struct {
    void *target;
    const void *source;
    size_t bytes;
} Copy;
typedef struct {
    Copy copies[256];
    int count;
} Graph;
typedef struct {
    Graph *capture;
} Stream;

static int live_blocks, live_pinned, live_streams, live_events, contexts;

/* What a test asks at the end: everything that was taken and not given back. */
int host_driver_live(void) { return live_blocks + live_streams + live_events + contexts; }

CUresult cuInit(unsigned flags) { return flags ? INVALID : OK; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, OK; }
CUresult cuDeviceGetCount(int *count) { return *count = 1, OK; }
CUresult cuDeviceGet(int *device, int number) { return *device = number, number ? 101 : OK; }
CUresult cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    snprintf(name, (size_t)size, "the CPU (host_driver.c)");
    return OK;
}
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 1;
    return OK;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) { return (void)device, *bytes = LIMIT, OK; }
CUresult cuMemGetInfo_v2(size_t *unused, size_t *total) { return *unused = *total = LIMIT, OK; }

CUresult cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    contexts++;
    *context = (void *)&contexts;
    return OK;
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, contexts--, OK; }
static void *current;
CUresult cuCtxSetCurrent(void *context) { return current = context, OK; }
CUresult cuCtxGetCurrent(void **context) { return *context = current, OK; }
CUresult cuCtxPushCurrent_v2(void *context) { return current = context, OK; }
CUresult cuCtxPopCurrent_v2(void **context) {
    if (context) *context = current;
    current = NULL;
    return OK;
}
CUresult cuCtxGetDevice(int *device) { return *device = 0, OK; }
CUresult cuCtxSynchronize(void) { return OK; }
CUresult cuCtxAttach(void **context, unsigned flags) { return (void)flags, *context = current, OK; }
CUresult cuCtxDetach(void *context) { return (void)context, OK; }
CUresult cuCtxGetApiVersion(void *context, unsigned *version) { return (void)context, *version = 13000, OK; }

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    if (!bytes) return INVALID;
    if (bytes > LIMIT) return OUT_OF_MEMORY;
    *address = (CUdeviceptr)(uintptr_t)aligned_alloc(512, (bytes + 511) / 512 * 512);
    live_blocks++;
    return OK;
}
CUresult cuMemFree_v2(CUdeviceptr address) { return free((void *)(uintptr_t)address), live_blocks--, OK; }
CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    *address = malloc(bytes);
    live_pinned++;
    return OK;
}
CUresult cuMemAllocHost_v2(void **address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
CUresult cuMemFreeHost(void *address) { return free(address), live_pinned--, OK; }

CUresult cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    *stream = calloc(1, sizeof(Stream));
    live_streams++;
    return OK;
}
CUresult cuStreamDestroy_v2(void *stream) { return free(stream), live_streams--, OK; }
CUresult cuStreamSynchronize(void *stream) { return stream && ((Stream *)stream)->capture ? CAPTURE : OK; }
CUresult cuStreamQuery(void *stream) { return (void)stream, OK; }
CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return (void)stream, (void)event, (void)flags, OK; }

CUresult cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = malloc(1);
    live_events++;
    return OK;
}
CUresult cuEventRecord(void *event, void *stream) { return (void)event, (void)stream, OK; }
CUresult cuEventSynchronize(void *event) { return (void)event, OK; }
CUresult cuEventQuery(void *event) { return (void)event, OK; }
CUresult cuEventDestroy_v2(void *event) { return free(event), live_events--, OK; }
CUresult cuEventElapsedTime(float *ms, void *start, void *end) { return (void)start, (void)end, *ms = 0, OK; }
CUresult cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }

static CUresult copy(void *target, const void *source, size_t bytes, void *stream) {
    Graph *graph = stream ? ((Stream *)stream)->capture : NULL;
    if (graph) {
        if (graph->count == 256) return INVALID;
        graph->copies[graph->count++] = (Copy){target, source, bytes};
    } else {
        memmove(target, source, bytes);
    }
    return OK;
}
#define POINTER(address) ((void *)(uintptr_t)(address))
CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr of, size_t n, void *s) { return copy(POINTER(to), POINTER(of), n, s); }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *of, size_t n, void *s) { return copy(POINTER(to), of, n, s); }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr of, size_t n, void *s) { return copy(to, POINTER(of), n, s); }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr of, size_t n, void *s) {
    return copy(POINTER(to), POINTER(of), n, s);
}

CUresult cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)mode;
    ((Stream *)stream)->capture = calloc(1, sizeof(Graph));
    return OK;
}
CUresult cuStreamEndCapture(void *stream, void **graph) {
    *graph = ((Stream *)stream)->capture;
    ((Stream *)stream)->capture = NULL;
    return OK;
}
CUresult cuGraphInstantiateWithFlags(void **handle, void *graph, unsigned long long flags) {
    (void)flags;
    *handle = memcpy(malloc(sizeof(Graph)), graph, sizeof(Graph));
    return OK;
}
CUresult cuGraphLaunch(void *handle, void *stream) {
    const Graph *graph = handle;
    for (int i = 0; i < graph->count; ++i) {
        copy(graph->copies[i].target, graph->copies[i].source, graph->copies[i].bytes, stream);
    }
    return OK;
}
CUresult cuGraphExecDestroy(void *handle) { return free(handle), OK; }
CUresult cuGraphDestroy(void *graph) { return free(graph), OK; }

CUresult cuGetErrorName(CUresult status, const char **name) { return (void)status, *name = "CUDA_ERROR", OK; }
CUresult cuGetErrorString(CUresult status, const char **text) { return (void)status, *text = "an error", OK; }

/* How cuda-bindings finds the others; the newest name first, as the real one does. */
CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    static const char *const ends[] = {"_v2", ""};
    (void)version;
    (void)flags;
    *function = NULL;
    for (int i = 0; i < 2 && !*function; ++i) {
        char name[128];
        snprintf(name, sizeof(name), "%s%s", symbol, ends[i]);
        Dl_info own;
        void *library = dladdr((void *)&cuInit, &own) ? dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD) : NULL;
        if (library) *function = dlsym(library, name);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
CUresult cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}
