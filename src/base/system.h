/* What the operating system says: time, memory, places. */
#ifndef QR_BASE_SYSTEM_H
#define QR_BASE_SYSTEM_H

#include <stddef.h>

#ifdef __APPLE__
extern char **environ; /* elsewhere in unistd.h */
#endif

/* Seconds of a clock that only goes forward. */
double qr_now(void);
/* Bytes that this process could still take, by the machine and by the limit of its control group; 0: not known. */
size_t qr_memory_available(void);
/* Bytes of memory that the process holds now; 0: not known. */
size_t qr_memory_resident(void);
/* socket(), closed in programs that this one starts. */
int qr_socket(int family, int type, int protocol);

/* The folder of the running program, of the shared object or program that this code is part of; without a slash at the end. 0: not known.
 */
int qr_program_dir(char *dir, size_t size);
int qr_library_dir(char *dir, size_t size);

#endif
