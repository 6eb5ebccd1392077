# The plug-in for MLX, qwen-rerank-mlx.so. MLX comes as a Python wheel (mlx-metal, mlx-cpu, mlx-cuda-*) or from Homebrew; QR_MLX_ROOT is the
# folder with its include/ and lib/. Linked by path and not by MLX's own CMake package, which wants a CUDA toolkit for its CUDA build.

enable_language(CXX)
find_path(QR_MLX_INCLUDE mlx/mlx.h HINTS ${QR_MLX_ROOT}/include NO_DEFAULT_PATH REQUIRED)
find_library(QR_MLX_LIBRARY mlx HINTS ${QR_MLX_ROOT}/lib ${QR_MLX_ROOT}/lib64 NO_DEFAULT_PATH REQUIRED)
get_filename_component(QR_MLX_LIBDIR ${QR_MLX_LIBRARY} DIRECTORY)

add_library(qwen-rerank-mlx MODULE src/mlx/network.cpp src/mlx/backend_mlx.cpp src/base/error.c src/base/file.c src/base/mem.c src/base/system.c
  src/model/blocks.c src/model/tensor.c)
target_include_directories(qwen-rerank-mlx PRIVATE include src)
target_include_directories(qwen-rerank-mlx SYSTEM PRIVATE ${QR_MLX_INCLUDE})
target_compile_definitions(qwen-rerank-mlx PRIVATE QR_VERSION="${PROJECT_VERSION}")
# Members of C structures that are left out are zero, here as in C.
target_compile_options(qwen-rerank-mlx PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>)
target_compile_features(qwen-rerank-mlx PRIVATE cxx_std_20)
target_link_libraries(qwen-rerank-mlx PRIVATE ${QR_MLX_LIBRARY} ${CMAKE_DL_LIBS})
# Beside the program, found at run time where it was built against: a wheel's library needs what lies beside it.
set_target_properties(qwen-rerank-mlx PROPERTIES PREFIX "" CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} BUILD_RPATH ${QR_MLX_LIBDIR} INSTALL_RPATH ${QR_MLX_LIBDIR})
if(APPLE)
  set_target_properties(qwen-rerank-mlx PROPERTIES SUFFIX ".dylib")
endif()
install(TARGETS qwen-rerank-mlx LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/qwen-rerank)
