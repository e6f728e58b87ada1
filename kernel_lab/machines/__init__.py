"""Virtual machines: a guest of KVM from Python, QEMU, Xen, and the machine that the labs run in."""
