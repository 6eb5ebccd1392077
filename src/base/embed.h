/* Files as constants of the program, by the assembler's .incbin.
 *
 * Not an array in a generated C file: compilers take seconds and a gigabyte for 8 million initialisers, the assembler nothing. (#embed is
 * C23.) The symbols are hidden, so that they stay inside the shared library.
 */
#ifndef QR_BASE_EMBED_H
#define QR_BASE_EMBED_H

#include <stdint.h>

#ifdef __APPLE__
#define QR_EMBED_SECTION ".section __TEXT,__const\n"
#define QR_EMBED_SYMBOL(name) "_" name
#define QR_EMBED_HIDDEN(name) ".private_extern " name "\n"
#define QR_EMBED_LOCAL(name) "Lqr_embed_" name
#define QR_EMBED_END ".text\n"
#else
#define QR_EMBED_SECTION ".pushsection .rodata.qr_embed, \"a\"\n"
#define QR_EMBED_SYMBOL(name) name
#define QR_EMBED_HIDDEN(name) ".hidden " name "\n"
#define QR_EMBED_LOCAL(name) ".Lqr_embed_" name
#define QR_EMBED_END ".popsection\n"
#endif
#define QR_EMBED_DEFINE(name) ".globl " name "\n" QR_EMBED_HIDDEN(name) name ":\n"

/* const unsigned char ID[] and const uint64_t ID_size with what is in `file`. The size is stored and not taken from a symbol at the end:
 * Apple's linker may move what follows a symbol. Aligned to a cache line. */
/* clang-format off */
#define QR_EMBED(id, file)                                                                                                                 \
    extern const unsigned char id[] __attribute__((visibility("hidden")));                                                                 \
    extern const uint64_t id##_size __attribute__((visibility("hidden")));                                                                 \
    __asm__(QR_EMBED_SECTION                                                                                                               \
            ".balign 64\n"                                                                                                                 \
            QR_EMBED_DEFINE(QR_EMBED_SYMBOL(#id))                                                                                          \
            ".incbin \"" file "\"\n"                                                                                                       \
            QR_EMBED_LOCAL(#id "_end") ":\n"                                                                                               \
            ".balign 8\n"                                                                                                                  \
            QR_EMBED_DEFINE(QR_EMBED_SYMBOL(#id "_size"))                                                                                  \
            ".quad " QR_EMBED_LOCAL(#id "_end") " - " QR_EMBED_SYMBOL(#id) "\n"                                                            \
            QR_EMBED_END)
/* clang-format on */

#endif
