/* Stands in for the library through which the DSL's host code talks to the CUDA runtime.
 *
 * Compiled host functions load their fat binary, look kernels up by name and launch them through the functions below.
 * Each hands the request to the emulator by a function pointer; without an active emulated device a launch fails. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "runtime_names.h"
#include "tensormap.h"

enum { SUCCESS = 0, INVALID_VALUE = 1, LAUNCH_FAILURE = 719, NO_DEVICE = 100, NOT_SUPPORTED = 801 };
enum { ATTRIBUTE_MAX_DYNAMIC_SHARED = 97, ATTRIBUTE_SM_COUNT = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76 };
enum { LAUNCH_ATTRIBUTE_CLUSTER = 4 };

typedef struct { int32_t id, pad; uint8_t value[64]; } LaunchAttribute;
typedef struct {
    uint32_t grid[3], block[3];
    uint64_t shared_bytes;
    void *stream;
    LaunchAttribute *attributes;
    uint32_t attribute_count;
} LaunchConfig;

typedef int (*LoadFn)(void **library, const void *image);
typedef int (*KernelFn)(void **kernel, void *library, const char *name);
typedef int (*LaunchFn)(void *kernel, const uint32_t *grid, const uint32_t *block, const uint32_t *cluster,
                        uint64_t shared_bytes, void **args);
typedef int (*AttributeFn)(int attribute);
typedef void (*ErrorFn)(const char *call, const char *what);

static LoadFn load_library;
static KernelFn find_kernel;
static LaunchFn launch_kernel;
static AttributeFn device_attribute;
static ErrorFn host_error;

EXPORT void host_runtime_connect(LoadFn load, KernelFn kernel, LaunchFn launch, AttributeFn attribute, ErrorFn error) {
    load_library = load;
    find_kernel = kernel;
    launch_kernel = launch;
    device_attribute = attribute;
    host_error = error;
}

EXPORT int _cudaLibraryLoadData(void **library, const void *image) {
    return load_library ? load_library(library, image) : NO_DEVICE;
}

EXPORT int _cudaLibraryUnload(void *library) { (void)library; return SUCCESS; }

EXPORT int _cudaLibraryGetKernel(void **kernel, void *library, const char *name) {
    return find_kernel ? find_kernel(kernel, library, name) : NO_DEVICE;
}

EXPORT int _cudaLaunchKernelEx(const LaunchConfig *config, void *kernel, void **args) {
    uint32_t cluster[3] = {1, 1, 1};
    for (uint32_t i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id == LAUNCH_ATTRIBUTE_CLUSTER) memcpy(cluster, config->attributes[i].value, 12);
    if (!launch_kernel) return NO_DEVICE;
    return launch_kernel(kernel, config->grid, config->block, cluster, config->shared_bytes, args);
}

EXPORT int _cudaLaunchKernel(void *kernel, uint64_t grid_xy, uint32_t grid_z, uint64_t block_xy, uint32_t block_z,
                             void **args, uint64_t shared_bytes, void *stream) {
    uint32_t grid[3] = {(uint32_t)grid_xy, (uint32_t)(grid_xy >> 32), grid_z};
    uint32_t block[3] = {(uint32_t)block_xy, (uint32_t)(block_xy >> 32), block_z}, cluster[3] = {1, 1, 1};
    (void)stream;
    return launch_kernel ? launch_kernel(kernel, grid, block, cluster, shared_bytes, args) : NO_DEVICE;
}

EXPORT int _cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) {
    (void)attribute; (void)kernel; (void)device;
    *value = 0;
    return SUCCESS;
}

EXPORT int _cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = device_attribute ? device_attribute(attribute) : attribute == ATTRIBUTE_MAX_DYNAMIC_SHARED ? 232448 : 0;
    return SUCCESS;
}

EXPORT int _cudaGetDevice(int *device) { *device = 0; return SUCCESS; }
EXPORT int _cudaSetDevice(int device) { return device == 0 ? SUCCESS : NO_DEVICE; }
EXPORT int _cudaGetDeviceCount(int *count) { *count = 1; return SUCCESS; }
EXPORT int _cudaFuncSetAttribute(void *f, int attribute, int value) { (void)f; (void)attribute; (void)value; return SUCCESS; }
EXPORT int _cudaKernelSetAttributeForDevice(void *k, int attribute, int value, int device) {
    (void)k; (void)attribute; (void)value; (void)device;
    return SUCCESS;
}
EXPORT int _cudaStreamSynchronize(void *stream) { (void)stream; return SUCCESS; }
EXPORT int _cudaDeviceSynchronize(void) { return SUCCESS; }
EXPORT int _cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *k, int threads, uint64_t shared) {
    (void)k; (void)threads; (void)shared;
    *blocks = 1;
    return SUCCESS;
}

/* Tensor maps that the host code has the driver encode, instead of writing their bits itself. */
EXPORT int _cuTensorMapEncodeTiled(void *map, uint32_t type, uint32_t rank, void *address, const uint64_t *dims,
                                   const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides,
                                   uint32_t interleave, uint32_t swizzle, uint32_t l2_promotion, uint32_t fill) {
    const char *wrong = tensormap_encode(map, type, rank, (uintptr_t)address, dims, strides, box, element_strides,
                                         interleave, swizzle, fill);
    (void)l2_promotion;
    if (wrong && host_error) host_error("cuTensorMapEncodeTiled", wrong);
    return wrong ? INVALID_VALUE : SUCCESS;
}

/* NVIDIA's ends the process. Ours goes on: the failed call has told the emulator, which launches nothing any more and
 * raises when the host function returns. */
EXPORT void cuda_dialect_assert_success(int error) { (void)error; }
EXPORT void cuda_dialect_print_on_error(int error) { (void)error; }

/* TVM-FFI wrappers: load the module's binary once, then once per device. */
EXPORT int cuda_dialect_init_library_once(void **state, int (*init)(void **), int (*load)(void **, int),
                                          void (*set_error)(void *, int)) {
    int error;
    (void)set_error;
    if (*state) return SUCCESS;
    if ((error = init(state)) != SUCCESS) return error;
    return load(state, 0);
}

EXPORT void cuda_dialect_unload_library_once(void **state) { *state = 0; }

EXPORT const char *cuda_dialect_get_error_name(int error) {
    return error == LAUNCH_FAILURE ? "emulated launch failed" : error == NO_DEVICE ? "no emulated device is active" : "error";
}

EXPORT void CuteDSLRT_TVMFFISetRaisedCudaError(void *unused, int error) {
    void (*raise)(const char *, const char *) = (void (*)(const char *, const char *))(
        uintptr_t)dlsym(RTLD_DEFAULT, "TVMFFIErrorSetRaisedFromCStr");
    (void)unused;
    if (raise) raise("RuntimeError", cuda_dialect_get_error_name(error));
}
EXPORT void CuteDSLRT_TVMFFISetRaisedCudaLaunchError(void *unused, int error) {
    CuteDSLRT_TVMFFISetRaisedCudaError(unused, error);
}
EXPORT const char *CuteDSLRT_GetErrorName(int error) { return cuda_dialect_get_error_name(error); }
EXPORT const char *CuteDSLRT_GetErrorString(int error) { return cuda_dialect_get_error_name(error); }
