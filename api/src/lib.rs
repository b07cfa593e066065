//! OpenStack-compatible REST over the control plane, and the commands of the wisp binary.
