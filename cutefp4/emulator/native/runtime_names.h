/* Under which names host_runtime.c stands in for the DSL's CUDA runtime.
 *
 * The JIT opens runtime libraries for the whole process, where the first library that has a name serves everybody. So
 * the interpreter's library has names of its own, and relink.py changes the names in the objects that it loads: real
 * kernels and emulated ones then live in one process. relink.py reads this list too. */
#define _cudaLibraryLoadData EcudaLibraryLoadData
#define _cudaLibraryUnload EcudaLibraryUnload
#define _cudaLibraryGetKernel EcudaLibraryGetKernel
#define _cudaLaunchKernelEx EcudaLaunchKernelEx
#define _cudaLaunchKernel EcudaLaunchKernel
#define _cuKernelGetAttribute EcuKernelGetAttribute
#define _cudaDeviceGetAttribute EcudaDeviceGetAttribute
#define _cudaGetDevice EcudaGetDevice
#define _cudaSetDevice EcudaSetDevice
#define _cudaGetDeviceCount EcudaGetDeviceCount
#define _cudaFuncSetAttribute EcudaFuncSetAttribute
#define _cudaKernelSetAttributeForDevice EcudaKernelSetAttributeForDevice
#define _cudaStreamSynchronize EcudaStreamSynchronize
#define _cudaDeviceSynchronize EcudaDeviceSynchronize
#define _cudaOccupancyMaxActiveBlocksPerMultiprocessor EcudaOccupancyMaxActiveBlocksPerMultiprocessor
#define _cuTensorMapEncodeTiled EcuTensorMapEncodeTiled
#define cuda_dialect_assert_success Euda_dialect_assert_success
#define cuda_dialect_print_on_error Euda_dialect_print_on_error
#define cuda_dialect_init_library_once Euda_dialect_init_library_once
#define cuda_dialect_unload_library_once Euda_dialect_unload_library_once
#define cuda_dialect_get_error_name Euda_dialect_get_error_name
#define CuteDSLRT_TVMFFISetRaisedCudaError EuteDSLRT_TVMFFISetRaisedCudaError
#define CuteDSLRT_TVMFFISetRaisedCudaLaunchError EuteDSLRT_TVMFFISetRaisedCudaLaunchError
#define CuteDSLRT_GetErrorName EuteDSLRT_GetErrorName
#define CuteDSLRT_GetErrorString EuteDSLRT_GetErrorString
