"""The machine code of process 1, one listing a machine; `kernel_lab.kernel.reaper` makes programs of them."""
