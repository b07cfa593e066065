//! Fuzz targets of the VMM, and of the disks that it is given, as plain functions over bytes. A target returns if the input was survived; what it finds
//! is a panic.
//!
//! They run on stable Rust, without instrumentation: `cargo test` runs each over a fixed number of inputs from a
//! seeded generator, so a failure repeats, and the binary `fuzz` runs one for as long as is wanted, or replays
//! files:
//! ```text
//! cargo run --release -- queue --seconds 600 --seed 7
//! cargo run --release -- endpoint crash-endpoint.bin
//! ```
//! A fuzzing engine with instrumentation needs no more than to call [`Target::run`].

mod boot;
mod container;
mod disk;
mod endpoint;
pub mod input;
mod pci;
mod plug;
mod queue;
mod snapshot;
mod vsock;

use input::Random;

/// The longest input in bytes that the generator makes: a few hundred operations, or an image's headers.
pub const INPUT_BYTES_MAX: usize = 2048;

/// One thing to attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A driver that does what it likes with registers, rings and memory of a virtio device.
    Queue,
    /// A guest that does what it likes with configuration space, registers and interrupts of PCI functions.
    Pci,
    /// A guest's packets over its socket device, and what the host's processes do meanwhile.
    Vsock,
    /// A guest at the hot-plug controller.
    Plug,
    /// Frames of a guest and of the link.
    Endpoint,
    /// Kernel images and initial ramdisks.
    Boot,
    /// Partitions and filesystems on a disk.
    Disk,
    /// Boot loaders' configurations on one.
    Script,
    /// Archives of container images.
    Container,
    /// Snapshots, and devices that go on from them.
    Snapshot,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Queue,
        Self::Pci,
        Self::Plug,
        Self::Vsock,
        Self::Endpoint,
        Self::Boot,
        Self::Disk,
        Self::Script,
        Self::Container,
        Self::Snapshot,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Pci => "pci",
            Self::Vsock => "vsock",
            Self::Plug => "plug",
            Self::Endpoint => "endpoint",
            Self::Boot => "boot",
            Self::Disk => "disk",
            Self::Script => "script",
            Self::Container => "container",
            Self::Snapshot => "snapshot",
        }
    }

    /// Runs the target over one input.
    ///
    /// # Panics
    /// On a bug.
    pub fn run(self, input: &[u8]) {
        match self {
            Self::Queue => queue::run(input),
            Self::Pci => pci::run(input),
            Self::Vsock => vsock::run(input),
            Self::Plug => plug::run(input),
            Self::Endpoint => endpoint::run(input),
            Self::Boot => boot::run(input),
            Self::Disk => disk::run(input),
            Self::Script => disk::run_script(input),
            Self::Container => container::run(input),
            Self::Snapshot => snapshot::run(input),
        }
    }

    /// Makes the input number `index` of a run with `seed`; the same numbers make the same input.
    pub fn generate(self, seed: u64, index: u64) -> Vec<u8> {
        let mut random = Random::new(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let length = 1 + random.below(INPUT_BYTES_MAX as u64) as usize;
        // Half of the inputs favour small numbers, which are the ones with a meaning.
        let small = random.below(2) == 0;
        (0..length)
            .map(|_| if small && random.below(4) != 0 { random.below(16) } else { random.below(256) } as u8)
            .collect()
    }
}
