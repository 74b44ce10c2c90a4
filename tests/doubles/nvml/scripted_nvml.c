/* A scripted libnvidia-ml.so.1: NVML's C interface over a power trace that a test writes.
 *
 * The real pynvml loads it (LD_LIBRARY_PATH), so a test drives the client code that a GPU host would run. The script is the
 * text file named by SCRIPTED_NVML; statements are listed in __init__.py beside this file, which writes them. Per card:
 *   power trace  straight lines between given times, held before the first and after the last
 *   sensor       updates at phase + k u (+ jitter); instant = mean of the last `window` s, average = of the last `boxcar` s
 *   counter      exact integral at the last update, floored to mJ; or ("looks") built from the instant readings
 *   faults       return codes by symbol or field, time, and the existence of a file
 * Times are seconds since origin_ns on CLOCK_MONOTONIC, or set by scripted_set_time (clock virtual). x86-64 layouts.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_GPUS 16
#define MAX_FAULTS 256
#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7

typedef struct {
    char uuid[96], name[96], mig_uuid[96];
    char reset_when[256], freeze_when[256]; /* files whose appearance does it */
    int mig, arch, looks;
    double limit_w, period_s, phase_s, jitter_s, window_s, boxcar_s, gain, offset_w, counter_start_j, reset_at_s, freeze_at_s;
    int n, cap;
    double *t, *w, *e; /* knots of the trace: time, power, integral since the first knot */
    int n_events;
    struct { double t; char key[16]; double value; } events[64]; /* settings that change: limit_w, mask, clock, temp, pid (negative: gone) */
    long looked; /* "looks" counter: updates summed so far */
    double looks_j;
} gpu_t;

typedef struct {
    char what[64]; /* a symbol, "field:83", or "*" */
    int gpu; /* -1: every card */
    double from_s, to_s;
    int code;
    char when[256]; /* only while this file exists; "": always */
} fault_t;

typedef struct { uint32_t id, scope; int64_t stamp_us, latency_us; int32_t type, code; union { double d; uint32_t u32; uint64_t u64; } value; } field_t;
typedef struct { uint32_t pid; uint32_t pad; uint64_t bytes; uint32_t gi, ci; } process_t;

static gpu_t gpus[MAX_GPUS];
static fault_t faults[MAX_FAULTS];
static int n_gpus, n_faults, loaded, virtual_clock, init_error, slow_us;
static double virtual_s;
static int64_t origin_ns;
static char driver[64] = "580.65.06", nvml[64] = "13.580.65";

static double now_s(void) {
    if (virtual_clock) return virtual_s;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)((int64_t)t.tv_sec * 1000000000 + t.tv_nsec - origin_ns) * 1e-9;
}

void scripted_set_time(double s) { virtual_s = s; }

/* --- trace and sensor ------------------------------------------------------------------------------------------------ */
static int knot_before(const gpu_t *g, double t) {
    int lo = 0, hi = g->n - 1;
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        if (g->t[mid] <= t) lo = mid; else hi = mid - 1;
    }
    return lo;
}

static double energy_j(const gpu_t *g, double t) {
    if (g->n == 0) return 0;
    if (t <= g->t[0]) return g->w[0] * (t - g->t[0]);
    int k = knot_before(g, t);
    double dt = t - g->t[k];
    if (k == g->n - 1) return g->e[k] + g->w[k] * dt;
    double span = g->t[k + 1] - g->t[k];
    double slope = span > 0 ? (g->w[k + 1] - g->w[k]) / span : 0;
    return g->e[k] + (g->w[k] + 0.5 * slope * dt) * dt;
}

static double jitter(const gpu_t *g, long k) { /* the same for every reader: a hash of k */
    if (g->jitter_s == 0) return 0;
    uint64_t x = (uint64_t)k * 0x9E3779B97F4A7C15ull + 0x1234567;
    x ^= x >> 31; x *= 0xBF58476D1CE4E5B9ull; x ^= x >> 27; x *= 0x94D049BB133111EBull; x ^= x >> 31;
    return g->jitter_s * ((double)(x >> 11) / 9007199254740992.0 * 2 - 1);
}

static double update_s(const gpu_t *g, long k) { return g->phase_s + (double)k * g->period_s + jitter(g, k); }

static long last_update(const gpu_t *g, double t) {
    long k = (long)floor((t - g->phase_s) / g->period_s) + 1;
    while (update_s(g, k) > t) k--;
    return k;
}

static double mean_w(const gpu_t *g, double t, double length) {
    return g->gain * (energy_j(g, t) - energy_j(g, t - length)) / length + g->offset_w;
}

static int exists(const char *path) { return path[0] && access(path, F_OK) == 0; }

static uint64_t counter_mj(gpu_t *g, double now) {
    if (isinf(g->reset_at_s) && exists(g->reset_when)) g->reset_at_s = now;
    if (isinf(g->freeze_at_s) && exists(g->freeze_when)) g->freeze_at_s = now;
    double t = now < g->freeze_at_s ? now : g->freeze_at_s;
    long k = last_update(g, t);
    double at = update_s(g, k);
    double j = g->counter_start_j;
    if (g->looks) {
        for (; g->looked < k; g->looked++) g->looks_j += g->period_s * mean_w(g, update_s(g, g->looked + 1), g->window_s);
        j += g->looks_j;
    } else {
        j += g->gain * energy_j(g, at) + g->offset_w * at;
    }
    if (at >= g->reset_at_s) j = g->gain * (energy_j(g, at) - energy_j(g, g->reset_at_s));
    return (uint64_t)floor(j * 1000);
}

static uint32_t milliwatt(double w) { return w <= 0 ? 0 : (uint32_t)llround(w * 1000); }

/* --- script ---------------------------------------------------------------------------------------------------------- */
static void knot(gpu_t *g, double t, double w) {
    if (g->n == g->cap) {
        g->cap = g->cap ? 2 * g->cap : 64;
        g->t = realloc(g->t, sizeof(double) * (size_t)g->cap);
        g->w = realloc(g->w, sizeof(double) * (size_t)g->cap);
        g->e = realloc(g->e, sizeof(double) * (size_t)g->cap);
    }
    int k = g->n++;
    g->t[k] = t;
    g->w[k] = w;
    g->e[k] = k ? g->e[k - 1] + 0.5 * (g->w[k - 1] + w) * (t - g->t[k - 1]) : 0;
}

static void bad(const char *line) {
    fprintf(stderr, "scripted NVML: cannot read the statement: %s", line);
    abort();
}

static void gpu_setting(int index, char *rest, const char *line) {
    if (index < 0 || index >= MAX_GPUS) bad(line);
    while (n_gpus <= index) {
        gpu_t *g = &gpus[n_gpus];
        *g = (gpu_t){.arch = 9, .limit_w = 700, .period_s = 0.1, .window_s = 0.025, .boxcar_s = 1, .gain = 1,
                     .counter_start_j = 1e6, .reset_at_s = INFINITY, .freeze_at_s = INFINITY};
        snprintf(g->uuid, sizeof g->uuid, "GPU-00000000-0000-0000-0000-%012d", n_gpus);
        snprintf(g->name, sizeof g->name, "Scripted GPU");
        n_gpus++;
    }
    gpu_t *g = &gpus[index];
    char key[32];
    int used = 0;
    if (sscanf(rest, "%31s %n", key, &used) != 1) bad(line);
    char *value = rest + used;
    value[strcspn(value, "\r\n")] = 0;
    struct { const char *key; double *to; } numbers[] = {
        {"limit_w", &g->limit_w}, {"period_s", &g->period_s}, {"phase_s", &g->phase_s}, {"jitter_s", &g->jitter_s},
        {"window_s", &g->window_s}, {"boxcar_s", &g->boxcar_s}, {"gain", &g->gain}, {"offset_w", &g->offset_w},
        {"counter_start_j", &g->counter_start_j}, {"reset_at_s", &g->reset_at_s}, {"freeze_at_s", &g->freeze_at_s}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!strcmp(key, numbers[i].key)) { *numbers[i].to = atof(value); return; }
    double t, w;
    if (!strcmp(key, "uuid")) snprintf(g->uuid, sizeof g->uuid, "%s", value);
    else if (!strcmp(key, "name")) snprintf(g->name, sizeof g->name, "%s", value);
    else if (!strcmp(key, "mig")) { g->mig = 1; snprintf(g->mig_uuid, sizeof g->mig_uuid, "%s", value); }
    else if (!strcmp(key, "reset_when")) snprintf(g->reset_when, sizeof g->reset_when, "%s", value);
    else if (!strcmp(key, "freeze_when")) snprintf(g->freeze_when, sizeof g->freeze_when, "%s", value);
    else if (!strcmp(key, "arch")) g->arch = atoi(value);
    else if (!strcmp(key, "counter")) g->looks = !strcmp(value, "looks");
    else if (!strcmp(key, "at")) {
        if (g->n_events == 64 || sscanf(value, "%lf %15s %lf", &g->events[g->n_events].t, g->events[g->n_events].key, &g->events[g->n_events].value) != 3) bad(line);
        g->n_events++;
    }
    else if (!strcmp(key, "knot") && sscanf(value, "%lf %lf", &t, &w) == 2) knot(g, t, w);
    else bad(line);
}

static void load(void) {
    if (loaded) return;
    loaded = 1;
    const char *path = getenv("SCRIPTED_NVML");
    FILE *f = path ? fopen(path, "r") : NULL;
    if (!f) { fprintf(stderr, "scripted NVML: SCRIPTED_NVML names no readable file\n"); abort(); }
    char line[1024], word[64];
    while (fgets(line, sizeof line, f)) {
        int used = 0;
        if (line[0] == '#' || sscanf(line, "%63s %n", word, &used) != 1) continue;
        char *rest = line + used;
        int index, more = 0;
        fault_t *x = &faults[n_faults];
        x->when[0] = 0;
        if (!strcmp(word, "clock")) virtual_clock = !strncmp(rest, "virtual", 7);
        else if (!strcmp(word, "origin_ns")) origin_ns = atoll(rest);
        else if (!strcmp(word, "driver")) sscanf(rest, "%63s", driver);
        else if (!strcmp(word, "nvml")) sscanf(rest, "%63s", nvml);
        else if (!strcmp(word, "init_error")) init_error = atoi(rest);
        else if (!strcmp(word, "slow_us")) slow_us = atoi(rest);
        else if (!strcmp(word, "gpu") && sscanf(rest, "%d %n", &index, &more) == 1) gpu_setting(index, rest + more, line);
        else if (!strcmp(word, "fault") && n_faults < MAX_FAULTS &&
                 sscanf(rest, "%63s %d %lf %lf %d %255s", x->what, &x->gpu, &x->from_s, &x->to_s, &x->code, x->when) >= 5) n_faults++;
        else bad(line);
    }
    fclose(f);
}

static int fault(const char *what, int gpu) {
    double t = now_s();
    for (int i = 0; i < n_faults; i++) {
        const fault_t *x = &faults[i];
        int named = !strcmp(x->what, what) || (!strcmp(x->what, "*") && strncmp(what, "field:", 6));
        if (named && (x->gpu < 0 || x->gpu == gpu) && t >= x->from_s && t < x->to_s &&
            (!x->when[0] || exists(x->when)))
            return x->code;
    }
    return SUCCESS;
}

/* Forget the script: the next nvmlInit reads the file anew. */
void scripted_reset(void) {
    for (int i = 0; i < n_gpus; i++) { free(gpus[i].t); free(gpus[i].w); free(gpus[i].e); }
    n_gpus = n_faults = loaded = init_error = slow_us = 0;
    virtual_s = 0;
}

/* What a setting is at time t: the value of its last event, else `otherwise`. */
static double setting(const gpu_t *g, const char *key, double t, double otherwise) {
    double value = otherwise;
    for (int i = 0; i < g->n_events; i++)
        if (!strcmp(g->events[i].key, key) && g->events[i].t <= t) value = g->events[i].value;
    return value;
}

/* Seconds up to t during which a bit of the mask was set. */
static double masked_s(const gpu_t *g, unsigned bit, double t) {
    double total = 0, since = -INFINITY;
    for (int i = 0; i < g->n_events; i++) {
        if (strcmp(g->events[i].key, "mask") || g->events[i].t > t) continue;
        int on = ((unsigned)g->events[i].value & bit) != 0;
        if (on && isinf(since)) since = g->events[i].t;
        if (!on && !isinf(since)) { total += g->events[i].t - since; since = -INFINITY; }
    }
    return isinf(since) ? total : total + t - since;
}

/* --- NVML ------------------------------------------------------------------------------------------------------------ */
/* A handle is the address of its card; that of a MIG instance is the address of the card's mig_uuid. */
static int index_of(const void *handle) {
    const gpu_t *g = handle;
    return g >= gpus && g < gpus + n_gpus ? (int)(g - gpus) : -1;
}

#define CARD(handle)                                  \
    if (!loaded) return UNINITIALIZED;                \
    int card = index_of(handle);                      \
    if (card < 0) return INVALID_ARGUMENT;            \
    gpu_t *g = &gpus[card];                           \
    int broken = fault(__func__, card);               \
    (void)g;                                          \
    if (broken) return broken;

#define TEXT(out, size, text) do { if (strlen(text) + 1 > (size)) return INSUFFICIENT_SIZE; strcpy(out, text); } while (0)

int nvmlInitWithFlags(unsigned flags) { (void)flags; load(); return init_error ? init_error : fault("nvmlInitWithFlags", -1); }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    static char text[40];
    switch (code) {
    case 0: return "Success";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    default: snprintf(text, sizeof text, "Scripted Error %d", code); return text;
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned n) { int e = fault(__func__, -1); if (e) return e; TEXT(out, n, driver); return SUCCESS; }
int nvmlSystemGetNVMLVersion(char *out, unsigned n) { int e = fault(__func__, -1); if (e) return e; TEXT(out, n, nvml); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { int e = fault(__func__, -1); if (e) return e; *out = (unsigned)n_gpus; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out) {
    if (!loaded) return UNINITIALIZED;
    if (i >= (unsigned)n_gpus) return INVALID_ARGUMENT;
    int e = fault(__func__, (int)i);
    if (e) return e;
    *out = &gpus[i];
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *h, char *out, unsigned n) {
    for (int i = 0; i < n_gpus; i++)
        if (h == (void *)gpus[i].mig_uuid) { TEXT(out, n, gpus[i].mig_uuid); return SUCCESS; }
    CARD(h)
    TEXT(out, n, g->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(void *h, char *out, unsigned n) { CARD(h) TEXT(out, n, g->name); return SUCCESS; }
int nvmlDeviceGetArchitecture(void *h, unsigned *out) { CARD(h) *out = (unsigned)g->arch; return SUCCESS; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *out) { CARD(h) *out = milliwatt(setting(g, "limit_w", now_s(), g->limit_w)); return SUCCESS; }
int nvmlDeviceGetApplicationsClock(void *h, int kind, unsigned *out) { CARD(h) *out = kind == 2 ? 2619 : (unsigned)setting(g, "clock", now_s(), 1980); return SUCCESS; }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned *out) { CARD(h) (void)kind; *out = (unsigned)setting(g, "clock", now_s(), 1980); return SUCCESS; }
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *out) { CARD(h) *out = (unsigned long long)setting(g, "mask", now_s(), 0); return SUCCESS; }
int nvmlDeviceGetTemperature(void *h, int kind, unsigned *out) { CARD(h) (void)kind; *out = (unsigned)setting(g, "temp", now_s(), 40); return SUCCESS; }
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *next) { CARD(h) *now = *next = (unsigned)g->mig; return SUCCESS; }
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *out) { CARD(h) *out = (unsigned)g->mig; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned i, void **out) {
    CARD(h)
    if (!g->mig || i > 0) return NOT_FOUND;
    *out = g->mig_uuid;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *h, unsigned *out) { /* Hopper: the one second mean */
    CARD(h)
    *out = milliwatt(mean_w(g, update_s(g, last_update(g, now_s())), g->boxcar_s));
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *out) { CARD(h) *out = counter_mj(g, now_s()); return SUCCESS; }

int nvmlDeviceGetFieldValues(void *h, int n, field_t *v) {
    CARD(h)
    if (slow_us && !virtual_clock) {
        struct timespec t = {slow_us / 1000000, (slow_us % 1000000) * 1000L};
        nanosleep(&t, NULL);
    }
    double t = now_s(), at = update_s(g, last_update(g, t));
    int any = 0;
    for (int i = 0; i < n; i++) {
        char name[24];
        snprintf(name, sizeof name, "field:%u", v[i].id);
        v[i].stamp_us = (int64_t)(t * 1e6);
        v[i].latency_us = 0;
        v[i].code = fault(name, card);
        v[i].value.u64 = 0;
        if (v[i].code) continue;
        switch (v[i].id) {
        case 83: case 191: v[i].type = 3; v[i].value.u64 = counter_mj(g, t); break;
        case 185: v[i].type = 1; v[i].value.u32 = milliwatt(mean_w(g, at, g->boxcar_s)); break;
        case 186: v[i].type = 1; v[i].value.u32 = milliwatt(mean_w(g, at, g->window_s)); break;
        case 74: case 75: case 269: case 270: case 271: {
            unsigned bit = v[i].id == 74 ? 0x4 : v[i].id == 75 ? 0x60 : v[i].id == 269 ? 0x20 : v[i].id == 270 ? 0x40 : 0x80;
            v[i].type = 3; v[i].value.u64 = (uint64_t)(masked_s(g, bit, t) * 1e9); break;
        }
        case 82: v[i].type = 1; v[i].value.u32 = (uint32_t)setting(g, "temp", t, 40) + 5; break;
        default: v[i].code = NOT_SUPPORTED; continue;
        }
        any = 1;
    }
    return any || n < 1 ? SUCCESS : v[0].code;
}

/* What other meters ask for before they read any energy. */
int nvmlDeviceGetComputeMode(void *h, int *out) { CARD(h) *out = 0; return SUCCESS; }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *n, process_t *out) { CARD(h) (void)out; *n = 0; return SUCCESS; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *out) { CARD(h) out[0] = 80ull << 30; out[2] = 1ull << 30; out[1] = out[0] - out[2]; return SUCCESS; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *out) { CARD(h) out[0] = 100; out[1] = 50; return SUCCESS; }

int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, process_t *out) {
    CARD(h)
    uint32_t pids[64];
    unsigned count = 0;
    double t = now_s();
    for (int i = 0; i < g->n_events; i++) { /* there from its event on, until one of the negative pid */
        if (strcmp(g->events[i].key, "pid") || g->events[i].value < 0 || g->events[i].t > t) continue;
        int gone = 0;
        for (int j = i + 1; j < g->n_events; j++)
            gone |= !strcmp(g->events[j].key, "pid") && g->events[j].value == -g->events[i].value && g->events[j].t <= t;
        if (!gone) pids[count++] = (uint32_t)g->events[i].value;
    }
    unsigned room = out ? *n : 0;
    *n = count;
    if (count > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < count; i++) out[i] = (process_t){.pid = pids[i], .bytes = 1 << 20, .gi = 0xFFFFFFFF, .ci = 0xFFFFFFFF};
    return SUCCESS;
}
