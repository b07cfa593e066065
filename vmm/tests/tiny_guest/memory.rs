//! Memory of the tiny guest's that comes and goes.

use vmm::config::MemConfig;
use vmm::rpc::ClientError;
use vmm::virtio::mem::MemStatus;

use super::peripherals::{Typist, console_socket, has_kvm};
use super::*;

/// The offset of a block in the region, well inside of it.
fn inside(block: u64) -> u64 {
    (block << 21) + 8192
}

fn start(transport: Transport) -> Instance {
    Instance::start_with(4096, |config, directory| {
        config.transport = transport;
        config.peripherals.console = Some(console_socket(directory));
        config.peripherals.mem = Some(MemConfig { region_mib: 128, requested_mib: 4 });
    })
}

/// Asks for so much, and waits until the guest has it.
fn request(instance: &Instance, mib: u32) {
    instance.client().set_memory(mib).unwrap();
    until(instance, mib);
}

fn until(instance: &Instance, mib: u32) {
    let deadline = Instant::now() + PATIENCE;
    let wanted = MemStatus { region_mib: 128, requested_mib: mib, plugged_mib: mib };
    loop {
        let status = instance.client().status().unwrap().memory.unwrap();
        if status == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn write(typist: &mut Typist, block: u64, text: &str) {
    let place = inside(block);
    assert_eq!(
        typist.say(&format!("pmem-write 0 {place} {text}")),
        format!("command: pmem-write 0 {place} ok")
    );
}

/// What is there, up to a NUL.
fn read(typist: &mut Typist, block: u64) -> String {
    let said = typist.say(&format!("pmem-read 0 {}", inside(block)));
    let start = format!("command: pmem-read 0 {} ok", inside(block));
    said.strip_prefix(&start).unwrap_or_else(|| panic!("{said}")).trim().to_owned()
}

#[test]
fn guest_has_as_much_memory_as_it_is_asked_to_and_gives_back_what_is_more() {
    if !has_kvm() {
        return;
    }
    for transport in [Transport::Mmio, Transport::Pci] {
        let instance = start(transport);
        let mut typist = Typist::connect(&instance);
        until(&instance, 4);
        request(&instance, 128);
        for block in [0, 1, 31, 63] {
            write(&mut typist, block, &format!("block {block}"));
        }
        request(&instance, 64);
        let texts = [0, 1, 31, 63].map(|block| read(&mut typist, block));
        assert_eq!(texts, ["block 0", "block 1", "block 31", ""], "what went is zeros");
        request(&instance, 128);
        assert_eq!(read(&mut typist, 63), "");
        for wrong in [3, 130] {
            let refused = instance.client().set_memory(wrong);
            assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
        }
        instance.client().stop(true).unwrap();
        instance.end();
    }
}

/// A snapshot, a piece that is different, and going on from both, whatever their form.
#[test]
fn guest_goes_on_with_the_memory_that_it_had_and_gives_that_back_too() {
    if !has_kvm() {
        return;
    }
    let instance = start(Transport::Mmio);
    let mut typist = Typist::connect(&instance);
    request(&instance, 16);
    (0..8).for_each(|block| write(&mut typist, block, "before"));
    let snapshot = |instance: &Instance, differences: bool| {
        let file = tempfile::tempfile().unwrap();
        instance.client().snapshot(&file, differences, true).unwrap();
        file
    };
    let full = snapshot(&instance, false);
    write(&mut typist, 2, "behind");
    request(&instance, 12);
    request(&instance, 20);
    write(&mut typist, 9, "new");
    let differences = snapshot(&instance, true);
    instance.client().stop(true).unwrap();
    instance.end();

    let clone = |file: &File| file.try_clone().unwrap();
    let packed = tempfile::tempfile().unwrap();
    let both = vec![clone(&full), clone(&differences)];
    let header = vmm::snapshot::rewrite(both, vmm::snapshot::Form::Packed, &packed, &mut |_| ()).unwrap();
    assert_eq!((header.memory_mib, header.hotplug_mib), (32 + 128, 128));
    for (files, texts) in [
        (vec![&full], ["before", "before", "before", ""]),
        (vec![&full, &differences], ["before", "behind", "", "new"]),
        (vec![&packed], ["before", "behind", "", "new"]),
    ] {
        let mib = if files.len() == 1 && texts[3].is_empty() { 16 } else { 20 };
        let boot = Boot::Snapshot {
            files: files.into_iter().map(|file| inherit(clone(file))).collect(),
            track: true,
            working_set: None,
        };
        let restored = Instance::boot_with(boot, 4096, |config, directory| {
            config.memory_mib = 0;
            config.peripherals.console = Some(console_socket(directory));
        });
        until(&restored, mib);
        let mut typist = Typist::connect(&restored);
        assert_eq!([0, 2, 7, 9].map(|block| read(&mut typist, block)), texts);
        request(&restored, 2);
        assert_eq!([0, 2].map(|block| read(&mut typist, block)), ["before", ""], "nothing comes back");
        request(&restored, 8);
        assert_eq!(read(&mut typist, 2), "");
        // It is as whole as that before.
        vmm::snapshot::verify(&snapshot(&restored, true)).unwrap();
        restored.client().stop(true).unwrap();
        restored.end();
    }
}
