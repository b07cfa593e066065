//! One microVM on /dev/kvm: memory, boot, devices, lifecycle; it knows no tenant and no cloud.
