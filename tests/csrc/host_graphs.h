/* CUDA graphs of the stand-in driver: nodes, edges and conditional handles, run on the CPU as NVIDIA documents them.
 *
 * Included by host_driver.c. Structures have the layout of cuda.h (CUDA 13), because cuda-bindings fills them in. Where
 * the documentation leaves a choice, the worst one is taken: of the nodes that may run, the one added last runs first,
 * and a value that no kernel set is the one that is left from before.
 */
#ifndef DOVIT_TESTS_HOST_GRAPHS_H
#define DOVIT_TESTS_HOST_GRAPHS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { KERNEL_NODE = 0, COPY_NODE = 1, SET_NODE = 2, GRAPH_NODE = 4, EMPTY_NODE = 5, ALLOC_NODE = 10, FREE_NODE = 11 };
enum { CONDITIONAL_NODE = 13, SWITCH = 2, ASSIGN_DEFAULT = 1 };
#define MOST_NODES 256
#define MOST_PARAMETERS 8

typedef struct {
    void *target;
    const void *source;
    size_t bytes;
} Copy;

/* A kernel: what stands for it on the host, and the size of each of its parameters, 0 after the last. */
typedef struct {
    char name[64];
    void (*call)(void **);
    size_t sizes[MOST_PARAMETERS + 1];
} Function;

typedef struct Graph Graph;
/* A graph and what is instantiated from it have a value each, under the same number. */
typedef struct {
    uint64_t number;
    unsigned value, initial, flags;
    int used;
} Handle;

typedef struct Node {
    int type;
    int waits_for[MOST_NODES], waits;
    Copy copy;
    const Function *function;
    uint64_t parameters[MOST_PARAMETERS];
    Graph *child;
    Graph **bodies;
    unsigned size;
    Handle *handle;
} Node;

struct Graph {
    Node *nodes[MOST_NODES];
    int count;
    int is_body;
    Handle *handles[16];
    int handle_count;
};

/* The parts of cuda.h that are used here. */
typedef struct {
    int type, reserved0[3];
    union {
        long long reserved1[29];
        struct {
            const Function *func;
            unsigned grid[3], block[3], shared;
            void **parameters, **extra;
            void *kern, *ctx;
        } kernel;
        struct {
            Graph *graph;
            int ownership;
        } graph;
        struct {
            uint64_t handle;
            int type;
            unsigned size;
            Graph **bodies;
            void *ctx;
        } conditional;
    };
    long long reserved2;
} NodeParameters;
_Static_assert(sizeof(NodeParameters) == 256, "as in cuda.h");

static int live_graphs;

static Graph *new_graph(void) { return live_graphs++, (Graph *)calloc(1, sizeof(Graph)); }

static void delete_graph(Graph *graph) {
    for (int i = 0; i < graph->count; ++i) {
        Node *node = graph->nodes[i];
        if (node->child) delete_graph(node->child);
        for (unsigned body = 0; body < node->size; ++body) delete_graph(node->bodies[body]);
        free(node->bodies);
        free(node);
    }
    for (int i = 0; i < graph->handle_count; ++i) free(graph->handles[i]);
    /* What still refers to it is a mistake, which this makes visible. */
    memset(graph, 0xA5, sizeof(Graph));
    free(graph);
    live_graphs--;
}

static Handle *handle_of(const Graph *graph, uint64_t number) {
    for (int i = 0; i < graph->handle_count; ++i) {
        if (graph->handles[i]->number == number) return graph->handles[i];
    }
    return NULL;
}

/* A copy of `graph` with everything in it; its conditional nodes read the handles of `root`, by default the copy. */
static Graph *cloned_graph(const Graph *graph, const Graph *root) {
    Graph *copy = new_graph();
    if (!root) root = copy;
    for (int i = 0; i < graph->handle_count; ++i) {
        copy->handles[i] = malloc(sizeof(Handle));
        *copy->handles[i] = *graph->handles[i];
    }
    copy->handle_count = graph->handle_count;
    copy->count = graph->count;
    for (int i = 0; i < graph->count; ++i) {
        Node *node = copy->nodes[i] = malloc(sizeof(Node));
        *node = *graph->nodes[i];
        if (node->child) node->child = cloned_graph(node->child, root);
        if (!node->size) continue;
        node->bodies = malloc(node->size * sizeof(Graph *));
        for (unsigned body = 0; body < node->size; ++body) {
            node->bodies[body] = cloned_graph(graph->nodes[i]->bodies[body], root);
        }
        node->handle = handle_of(root, node->handle->number);
    }
    return copy;
}

static int holds(const Graph *graph, int type) {
    for (int i = 0; i < graph->count; ++i) {
        const Node *node = graph->nodes[i];
        if (node->type == type || (node->child && holds(node->child, type))) return 1;
    }
    return 0;
}

/* Kernels, empty nodes, child graphs, memory sets and copies, conditionals; also in what they hold. */
static int fit_for_a_body(const Graph *graph) {
    for (int i = 0; i < graph->count; ++i) {
        const Node *node = graph->nodes[i];
        const int type = node->type;
        if (type > GRAPH_NODE + 1 && type != CONDITIONAL_NODE) return 0;
        if (type == 3 || (node->child && !fit_for_a_body(node->child))) return 0;
        for (unsigned body = 0; body < node->size; ++body) {
            if (!fit_for_a_body(node->bodies[body])) return 0;
        }
    }
    return 1;
}

static int instantiable(const Graph *graph) {
    for (int i = 0; i < graph->handle_count; ++i) {
        if (!graph->handles[i]->used) return 0;
    }
    for (int i = 0; i < graph->count; ++i) {
        for (unsigned body = 0; body < graph->nodes[i]->size; ++body) {
            if (!fit_for_a_body(graph->nodes[i]->bodies[body])) return 0;
        }
    }
    return 1;
}

static void run_graph(Graph *graph) {
    int done[MOST_NODES] = {0};
    for (int i = 0; i < graph->handle_count; ++i) {
        Handle *handle = graph->handles[i];
        if (handle->flags & ASSIGN_DEFAULT) handle->value = handle->initial;
    }
    for (int left = graph->count; left > 0; --left) {
        int next = graph->count - 1;
        for (;; --next) {
            int ready = !done[next];
            for (int i = 0; ready && i < graph->nodes[next]->waits; ++i) ready = done[graph->nodes[next]->waits_for[i]];
            if (ready) break;
        }
        Node *node = graph->nodes[next];
        done[next] = 1;
        if (node->type == COPY_NODE) memmove(node->copy.target, node->copy.source, node->copy.bytes);
        if (node->type == GRAPH_NODE) run_graph(node->child);
        if (node->type == KERNEL_NODE) {
            void *addresses[MOST_PARAMETERS];
            for (int i = 0; i < MOST_PARAMETERS; ++i) addresses[i] = &node->parameters[i];
            node->function->call(addresses);
        }
        /* A number that no body has runs none of them. */
        if (node->type == CONDITIONAL_NODE && node->handle->value < node->size) run_graph(node->bodies[node->handle->value]);
    }
}

#endif
