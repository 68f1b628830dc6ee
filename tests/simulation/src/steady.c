/* Takes the place of the system's random bytes in the simulation's programs.

   std draws the order of its hash maps from getrandom(2), once for each thread, and lets a program bring its own (it looks
   for the symbol before it makes the system call). kube's scheduler keeps what waits in such maps: with bytes that are always
   the same, a seed decides that order, too. */
#include <stddef.h>
#include <string.h>
#include <sys/types.h>

ssize_t getrandom(void *bytes, size_t length, unsigned flags) {
    (void)flags;
    memset(bytes, 7, length);
    return (ssize_t)length;
}
