# Cross-compiles for 64-bit ARM Linux with Debian's gcc-aarch64-linux-gnu and runs the result under qemu-user.
# `make test-arm64` uses it. Libraries come from QR_SYSROOT, a folder of unpacked Debian arm64 packages that scripts/arm64.sh fills;
# the C library itself comes with the cross compiler.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES QR_SYSROOT)

if(NOT QR_SYSROOT)
  message(FATAL_ERROR "set -DQR_SYSROOT=DIR (a folder with Debian's arm64 libraries), or run `make test-arm64`, which makes one")
endif()
set(CMAKE_FIND_ROOT_PATH ${QR_SYSROOT} /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(ENV{PKG_CONFIG_LIBDIR} ${QR_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${QR_SYSROOT}/usr/share/pkgconfig)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${QR_SYSROOT})

set(QR_LIBS ${QR_SYSROOT}/usr/lib/aarch64-linux-gnu)
# <openssl/configuration.h> and its like live in the multiarch folder.
set(CMAKE_C_FLAGS_INIT "-isystem ${QR_SYSROOT}/usr/include/aarch64-linux-gnu -isystem ${QR_SYSROOT}/usr/include")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-L${QR_LIBS} -Wl,-rpath-link,${QR_LIBS}")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-L${QR_LIBS} -Wl,-rpath-link,${QR_LIBS}")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=${QR_LIBS}:/usr/aarch64-linux-gnu/lib)
