/*
 * Lets User-Mode Linux 6.1 run on processors with AMX; scripts/lab/run preloads it into linux.uml.
 *
 * The guest kernel keeps 2,696 bytes of the extended registers of a process (XSAVE, Intel SDM volume 1, chapter 13: up to PKRU), and
 * gives them back with PTRACE_SETREGSET. Linux takes only the whole area there (arch/x86/kernel/fpu/regset.c), which is 11,008 bytes where
 * the processor has tile registers, and the guest dies at its first process. So what it gives is completed: nobody in a guest
 * may use tile registers, which takes a call that the guest kernel does not know (arch_prctl ARCH_REQ_XCOMP_PERM).
 */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Where the header of the area says which parts are not as at start, and the bits of the tile registers there. */
#define XSTATE_BV 512
#define TILES ((uint64_t)3 << 17)

/* Not on the stack, which is a guest kernel's and small. The guest has one processor, so one thread calls. */
static unsigned char whole[64 << 10];

static long set_registers(long pid, struct iovec *given)
{
    struct iovec all = { whole, sizeof whole };
    uint64_t in_use;

    if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all) < 0)
        return -1;
    if (given->iov_len >= all.iov_len || given->iov_len < XSTATE_BV + sizeof in_use)
        return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, given);
    memset(whole, 0, all.iov_len);
    memcpy(whole, given->iov_base, given->iov_len);
    memcpy(&in_use, whole + XSTATE_BV, sizeof in_use);
    in_use &= ~TILES;
    memcpy(whole + XSTATE_BV, &in_use, sizeof in_use);
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

/* As glibc's (man 2 ptrace, "C library/kernel differences"). */
long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    long pid, result, word;
    void *address, *data;

    va_start(arguments, request);
    pid = va_arg(arguments, long);
    address = va_arg(arguments, void *);
    data = va_arg(arguments, void *);
    va_end(arguments);
    if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE)
        return set_registers(pid, data);
    if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
        return syscall(SYS_ptrace, request, pid, address, data);
    result = syscall(SYS_ptrace, request, pid, address, &word);
    if (result < 0)
        return result;
    errno = 0;
    return word;
}
