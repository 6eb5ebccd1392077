/* What the operating system says about memory. */
#ifndef QR_BASE_SYSTEM_H
#define QR_BASE_SYSTEM_H

#include <stddef.h>

/* Bytes that this process could still take, by the machine and by the limit of its control group; 0: not known. */
size_t qr_memory_available(void);
/* Bytes of memory that the process holds now; 0: not known. */
size_t qr_memory_resident(void);

#endif
