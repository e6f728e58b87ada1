#include <stdio.h>

int main(void) {
    puts("hello from a container of one file");
    return 0;
}
