//! Random drivers: whatever is in the rings, the device neither panics nor spins.

use proptest::prelude::*;

use super::super::mock::{BUFFERS_START, MockDescriptor};
use super::*;

fn descriptor() -> impl Strategy<Value = MockDescriptor> {
    let address = prop_oneof![
        4 => BUFFERS_START..BUFFERS_START + 0x1000,
        1 => any::<u64>(),
        1 => 0x1f_fff0_u64..0x20_0010,
    ];
    let length = prop_oneof![3 => 0..0x800_u32, 1 => any::<u32>()];
    (address, length, 0..8_u16, 0..18_u16).prop_map(|(address, length, flags, next)| MockDescriptor {
        address,
        length,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_chains_never_panic_or_spin(
        descriptors in proptest::collection::vec(descriptor(), 16),
        heads in proptest::collection::vec(0..20_u16, 1..12),
        buffers in proptest::collection::vec(any::<u8>(), 0x1000),
    ) {
        let disk = MemoryDisk::new(1 << 16);
        let mut guest = block_guest(&disk);
        let mut queue = guest.bring_up(0, &[16])[0];
        guest.put(BUFFERS_START, &buffers);
        for (index, descriptor) in descriptors.iter().enumerate() {
            queue.write_descriptor(&guest.memory, index as u16, *descriptor);
        }
        for head in heads {
            queue.make_available(&guest.memory, head);
            guest.kick(0);
        }
        prop_assert!(guest.run());
    }

    #[test]
    fn random_registers_never_panic_or_spin(
        accesses in proptest::collection::vec((0..0x120_u32, any::<u32>(), any::<bool>()), 1..200),
    ) {
        let disk = MemoryDisk::new(1 << 16);
        let mut guest = block_guest(&disk);
        for (register, value, small) in accesses {
            // Small values are the ones with a meaning.
            guest.write(register & !3, if small { value & 0xff } else { value });
            guest.read(register & !3);
        }
        prop_assert!(guest.run());
    }
}
