//! Sizes that launchers share with their kernels: threads, rows, boxes of tile copies, bytes of shared memory. They are
//! typed once, in `kernels/sizes.cuh`; the build script makes this module of that file.

include!(concat!(env!("OUT_DIR"), "/sizes.rs"));
