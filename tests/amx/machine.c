/* The program of a machine that has nothing else: makes the calls that stand in its memory and sends what comes out to port 0xe9, which
 * Bochs writes to its standard output. test_amx.py says what is where. */
#include <stddef.h>
#include <stdint.h>

enum { CALLS_AT = 0x1000000, N_VECTORS = 32, VECTOR_BYTES = 32, CODE = 24 };

typedef struct call {
    size_t what;
    const void *arguments;
    const void *out; /* what to send after it */
    size_t out_bytes;
} call;

size_t amx_call(size_t what, const void *arguments);
_Noreturn void amx_main(void);
_Noreturn void amx_fault(size_t vector, const uint64_t *frame);
extern const unsigned char amx_vectors[]; /* [N_VECTORS][VECTOR_BYTES] code */

static void out_bytes(uint16_t port, const void *bytes, size_t n)
{
    __asm__ volatile("rep outsb" : "+S"(bytes), "+c"(n) : "d"(port) : "memory");
}

static _Noreturn void stop(void)
{
    for (;;) out_bytes(0x8900, "Shutdown", 8);
}

_Noreturn void amx_fault(size_t vector, const uint64_t *frame)
{
    const uint32_t has_code = 0x227d00; /* exceptions 8, 10 to 14, 17 and 21 put one before the address of the instruction */
    uint64_t report[3] = {vector, frame[has_code >> vector & 1], 0};
    __asm__ volatile("movq %%cr2, %0" : "=r"(report[2]));
    out_bytes(0xe9, "FAULT", 5);
    out_bytes(0xe9, report, sizeof report);
    stop();
}

_Noreturn void amx_main(void)
{
    static struct {
        uint16_t low, selector, type, high;
        uint32_t highest, reserved;
    } gates[N_VECTORS];
    for (size_t i = 0; i < N_VECTORS; i++) {
        uintptr_t at = (uintptr_t) amx_vectors + i * VECTOR_BYTES;
        gates[i].low = (uint16_t) at;
        gates[i].selector = CODE;
        gates[i].type = 0x8e00; /* present, interrupt gate */
        gates[i].high = (uint16_t) (at >> 16);
    }
    struct __attribute__((packed)) {
        uint16_t limit;
        const void *base;
    } idt = {sizeof gates - 1, gates};
    __asm__ volatile("lidt %0" : : "m"(idt));

    const volatile size_t *n = (const volatile size_t *) CALLS_AT;
    const call *calls = (const call *) (CALLS_AT + 64);
    for (size_t i = 0; i < *n; i++) {
        uint64_t failed = amx_call(calls[i].what, calls[i].arguments);
        out_bytes(0xe9, "CALL", 4);
        out_bytes(0xe9, &failed, sizeof failed);
        out_bytes(0xe9, calls[i].out, calls[i].out_bytes);
    }
    stop();
}
