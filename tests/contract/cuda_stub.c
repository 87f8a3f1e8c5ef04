/* Stands in for libcuda: keeps what it is asked to launch, for the test to read. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef int CUresult;
enum { MOST_PARAMETERS = 32, NO_BINARY_FOR_GPU = 209, NOT_FOUND = 500 };

/* Written by the test. */
int stub_parameters;
int stub_sizes[MOST_PARAMETERS];
int stub_refuse_module;
int stub_driver_version = 13000;

/* Read by the test. */
int stub_modules, stub_launches;
char stub_entry[256], stub_image[16];
int stub_attribute, stub_attribute_value;
unsigned stub_dims[7];
uint64_t stub_stream, stub_values[MOST_PARAMETERS];

CUresult cuInit(unsigned flags) { return (int)(flags & 0); }

CUresult cuDriverGetVersion(int* version) {
    *version = stub_driver_version;
    return 0;
}

CUresult cuCtxGetCurrent(void** context) {
    *context = (void*)0x1000;
    return 0;
}

CUresult cuModuleLoadData(void** module, const void* image) {
    if (stub_refuse_module) return NO_BINARY_FOR_GPU;
    memcpy(stub_image, image, sizeof stub_image - 1);
    *module = (void*)(uintptr_t)(0x2000 + ++stub_modules);
    return 0;
}

CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
    snprintf(stub_entry, sizeof stub_entry, "%s", name);
    *function = (char*)module + 0x1000;
    return 0;
}

CUresult cuFuncSetAttribute(void* function, int attribute, int value) {
    (void)function;
    stub_attribute = attribute, stub_attribute_value = value;
    return 0;
}

CUresult cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, void* stream, void** parameters,
                        void** extra) {
    unsigned dims[7] = {gx, gy, gz, bx, by, bz, shared};
    (void)function;
    if (extra) return NOT_FOUND;
    memcpy(stub_dims, dims, sizeof dims);
    stub_stream = (uint64_t)(uintptr_t)stream;
    for (int i = 0; i < stub_parameters; ++i) {
        stub_values[i] = 0;
        memcpy(&stub_values[i], parameters[i], (size_t)stub_sizes[i]);
    }
    ++stub_launches;
    return 0;
}

CUresult cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags,
                             int* status) {
#define KNOWN(f) {#f, (void*)f}
    static const struct { const char* name; void* function; } known[] = {
        KNOWN(cuDriverGetVersion),
        KNOWN(cuInit),           KNOWN(cuCtxGetCurrent),   KNOWN(cuModuleLoadData),
        KNOWN(cuModuleGetFunction), KNOWN(cuFuncSetAttribute), KNOWN(cuLaunchKernel),
    };
    (void)version, (void)flags;
    *function = NULL;
    for (unsigned i = 0; i < sizeof known / sizeof *known; ++i)
        if (!strcmp(name, known[i].name)) *function = known[i].function;
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : NOT_FOUND;
}

CUresult cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
