/* A stand-in for the NVIDIA driver (libcuda.so.1) whose GPU is the CPU: memory is host memory, work is done at once.
 *
 * It has what the two packages for device memory call, so that their own code runs where there is no GPU. Copies on a
 * stream in capture are kept, and done when the graph is launched. A kernel is a function on the host that a test
 * registers by name. It computes nothing and stands for no speed.
 * Compiled by tests/csrc/stand_in.py: gcc -shared -fPIC -Wl,-soname,libcuda.so.1
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host_graphs.h"

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum {
    OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, NOT_FOUND = 500, NOT_SUPPORTED = 801, CAPTURE = 900
};
#define LIMIT ((uint64_t)1 << 30)

typedef struct {
    Graph *capture;
} Stream;

static int live_blocks, live_pinned, live_streams, live_events, live_modules, contexts, module_loads, blocking_streams;
static CUresult failure; /* what every call answers once a kernel has met an illegal address */
static _Thread_local void *current;

/* What a test asks at the end: everything that was taken and not given back. */
int host_driver_live(void) { return live_blocks + live_streams + live_events + contexts; }
int host_driver_live_modules(void) { return live_modules; }
int host_driver_contexts(void) { return contexts; }
int host_driver_module_loads(void) { return module_loads; }
int host_driver_blocking_streams(void) { return blocking_streams; }
void host_driver_fail(CUresult status) { failure = status; }
int host_driver_live_graphs(void) { return live_graphs; }

/* The kernels that a module has, whatever bytes it is loaded from. */
static Function functions[64];
static int function_count;
int host_driver_register(const char *name, void (*call)(void **), const size_t *sizes, int count) {
    if (function_count == 64 || count > MOST_PARAMETERS) return INVALID;
    Function *function = &functions[function_count++];
    snprintf(function->name, sizeof(function->name), "%s", name);
    function->call = call;
    memcpy(function->sizes, sizes, (size_t)count * sizeof(size_t));
    return OK;
}

/* What stands in the way of any work: an earlier failure, or no context in this thread. */
static CUresult refusal(void) { return failure ? failure : current ? OK : NO_CONTEXT; }
#define WORK() do { CUresult status = refusal(); if (status) return status; } while (0)

CUresult cuInit(unsigned flags) { return flags ? INVALID : OK; }
static int driver_version = 13000;
void host_driver_version(int version) { driver_version = version; }
CUresult cuDriverGetVersion(int *version) { return *version = driver_version, OK; }
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
    WORK();
    if (!bytes) return INVALID;
    if (bytes > LIMIT) return OUT_OF_MEMORY;
    *address = (CUdeviceptr)(uintptr_t)aligned_alloc(512, (bytes + 511) / 512 * 512);
    live_blocks++;
    return OK;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    WORK();
    return free((void *)(uintptr_t)address), live_blocks--, OK;
}
CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    *address = malloc(bytes);
    live_pinned++;
    return OK;
}
CUresult cuMemAllocHost_v2(void **address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
CUresult cuMemFreeHost(void *address) { return free(address), live_pinned--, OK; }

CUresult cuStreamCreate(void **stream, unsigned flags) {
    WORK();
    blocking_streams += !(flags & 1);
    *stream = calloc(1, sizeof(Stream));
    live_streams++;
    return OK;
}
CUresult cuStreamDestroy_v2(void *stream) { return free(stream), live_streams--, OK; }
CUresult cuStreamSynchronize(void *stream) {
    WORK();
    return stream && ((Stream *)stream)->capture ? CAPTURE : OK;
}
CUresult cuStreamQuery(void *stream) { return (void)stream, OK; }
CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return (void)stream, (void)event, (void)flags, OK; }

CUresult cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = malloc(1);
    live_events++;
    return OK;
}
CUresult cuEventRecord(void *event, void *stream) { return (void)event, (void)stream, refusal(); }
CUresult cuEventSynchronize(void *event) { return (void)event, refusal(); }
CUresult cuEventQuery(void *event) { return (void)event, OK; }
CUresult cuEventDestroy_v2(void *event) { return free(event), live_events--, OK; }
CUresult cuEventElapsedTime(float *ms, void *start, void *end) { return (void)start, (void)end, *ms = 0, OK; }
CUresult cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }

static Node *added(Graph *graph, int type) {
    if (graph->count == MOST_NODES) return NULL;
    Node *node = calloc(1, sizeof(Node));
    node->type = type;
    return graph->nodes[graph->count++] = node;
}
static CUresult copy(void *target, const void *source, size_t bytes, void *stream) {
    Graph *graph = stream ? ((Stream *)stream)->capture : NULL;
    WORK();
    if (!graph) return memmove(target, source, bytes), OK;
    Node *node = added(graph, COPY_NODE);
    if (!node) return INVALID;
    node->copy = (Copy){target, source, bytes};
    /* Work on a stream is done in order. */
    if (graph->count > 1) node->waits_for[node->waits++] = graph->count - 2;
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
    ((Stream *)stream)->capture = new_graph();
    return OK;
}
CUresult cuStreamEndCapture(void *stream, void **graph) {
    *graph = ((Stream *)stream)->capture;
    ((Stream *)stream)->capture = NULL;
    return OK;
}

CUresult cuModuleLoadData(void **module, const void *image) {
    WORK();
    if (!image) return INVALID;
    live_modules++, module_loads++;
    return *module = functions, OK;
}
CUresult cuModuleUnload(void *module) { return (void)module, live_modules--, OK; }
CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
    (void)module;
    for (int i = 0; i < function_count; ++i) {
        if (!strcmp(functions[i].name, name)) return *function = &functions[i], OK;
    }
    return NOT_FOUND;
}

CUresult cuGraphCreate(void **graph, unsigned flags) { return *graph = new_graph(), flags ? INVALID : OK; }
CUresult cuGraphDestroy(void *graph) { return delete_graph(graph), OK; }
CUresult cuGraphConditionalHandleCreate(uint64_t *handle, void *graph, void *context, unsigned initial, unsigned flags) {
    Graph *owner = graph;
    (void)context;
    if (owner->handle_count == 16 || flags > ASSIGN_DEFAULT) return INVALID;
    static uint64_t handles_made;
    *handle = ++handles_made;
    /* Without a default the value is whatever it was: here, one that no body has. */
    *(owner->handles[owner->handle_count++] = calloc(1, sizeof(Handle))) =
        (Handle){*handle, 0xA5A5A5A5u, initial, flags, 0};
    return OK;
}
/* The device function of the same purpose calls this. */
static const Graph *running;
void host_driver_set_conditional(uint64_t handle, unsigned value) {
    Handle *found = running ? handle_of(running, handle) : NULL;
    if (found) found->value = value;
}
CUresult cuGraphAddNode_v2(void **added_node, void *graph, void **waits_for, const void *edges, size_t count,
                           NodeParameters *given) {
    Graph *owner = graph;
    (void)edges;
    if (given->type == ALLOC_NODE && owner->is_body) return INVALID;
    if (given->type == GRAPH_NODE) {
        const Graph *child = given->graph.graph;
        if (holds(child, ALLOC_NODE) || holds(child, FREE_NODE) || holds(child, CONDITIONAL_NODE)) return INVALID;
        if (given->graph.ownership != 0) return NOT_SUPPORTED;
    }
    if (given->type == CONDITIONAL_NODE) {
        const Handle *handle = handle_of(owner, given->conditional.handle);
        if (!handle || handle->used || given->conditional.type != SWITCH) return INVALID;
    }
    Node *node = added(owner, given->type);
    if (!node) return INVALID;
    for (size_t i = 0; i < count; ++i) {
        int found = -1;
        for (int n = 0; n < owner->count - 1; ++n) found = owner->nodes[n] == waits_for[i] ? n : found;
        if (found < 0) return INVALID;
        node->waits_for[node->waits++] = found;
    }
    if (given->type == KERNEL_NODE) {
        node->function = given->kernel.func;
        for (int i = 0; node->function->sizes[i]; ++i) {
            memcpy(&node->parameters[i], given->kernel.parameters[i], node->function->sizes[i]);
        }
    } else if (given->type == GRAPH_NODE) {
        node->child = cloned_graph(given->graph.graph, NULL);
    } else if (given->type == CONDITIONAL_NODE) {
        node->handle = handle_of(owner, given->conditional.handle);
        node->handle->used = 1;
        node->size = given->conditional.size;
        node->bodies = calloc(node->size, sizeof(Graph *));
        for (unsigned body = 0; body < node->size; ++body) {
            node->bodies[body] = new_graph();
            node->bodies[body]->is_body = 1;
        }
        given->conditional.bodies = node->bodies;
    }
    *added_node = node;
    return OK;
}
CUresult cuGraphNodeGetType(const Node *node, int *type) { return *type = node->type, OK; }
CUresult cuGraphChildGraphNodeGetGraph(const Node *node, void **graph) {
    return *graph = node->child, node->child ? OK : INVALID;
}
CUresult cuGraphGetNodes(const Graph *graph, void **nodes, size_t *count) {
    for (size_t i = 0; nodes && i < *count && i < (size_t)graph->count; ++i) nodes[i] = graph->nodes[i];
    *count = (size_t)graph->count;
    return OK;
}
CUresult cuGraphGetEdges_v2(const Graph *graph, void **from, void **to, void *data, size_t *count) {
    size_t found = 0;
    (void)data;
    for (int n = 0; n < graph->count; ++n) {
        for (int i = 0; i < graph->nodes[n]->waits; ++i, ++found) {
            if (!from || found >= *count) continue;
            from[found] = graph->nodes[graph->nodes[n]->waits_for[i]];
            to[found] = graph->nodes[n];
        }
    }
    *count = found;
    return OK;
}
CUresult cuGraphInstantiateWithFlags(void **handle, void *graph, unsigned long long flags) {
    (void)flags;
    if (!instantiable(graph)) return INVALID;
    *handle = cloned_graph(graph, NULL);
    return OK;
}
CUresult cuGraphUpload(void *handle, void *stream) { return (void)handle, (void)stream, OK; }
CUresult cuGraphLaunch(void *handle, void *stream) {
    (void)stream;
    running = handle;
    run_graph(handle);
    running = NULL;
    return OK;
}
CUresult cuGraphExecDestroy(void *handle) { return delete_graph(handle), OK; }

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
