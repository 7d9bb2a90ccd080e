"""Level `vm`: a virtual machine of libvirt, with a kernel of its own."""
