//! The slots of the PCI bus, each with what a guest calls to let it go (`_EJ0`, ACPI 6.5 §6.3.3), and the methods that
//! read the hot-plug controller's registers and notify the slots.

use acpi_tables::{Aml, AmlSink, aml};

use crate::pci::host::SLOTS;
use crate::pci::plug;

/// Notifications (ACPI 6.5 §5.6.6): look at the slot; let it go.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// How long a mutex is waited for: as long as it takes.
const FOREVER: u16 = 0xffff;

/// Bytes of AML that are made already.
struct Made(Vec<u8>);

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn made(term: &dyn Aml) -> Made {
    Made(super::bytes(term))
}

fn name_of(slot: u8) -> aml::Path {
    format!("S{slot:02}_").as_str().into()
}

/// What belongs into the host bridge.
pub(super) struct Slots;

impl Aml for Slots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let bits = 8 * usize::from(plug::REGISTERS_BYTES) / 3;
        let registers = [*b"PCIU", *b"PCID", *b"B0EJ"];
        let registers = registers.map(|name| aml::FieldEntry::Named(name, bits)).to_vec();
        aml::OpRegion::new(
            "PCST".into(),
            aml::OpRegionSpace::SystemIO,
            &plug::REGISTERS_PORT,
            &plug::REGISTERS_BYTES,
        )
        .to_aml_bytes(sink);
        aml::Field::new(
            "PCST".into(),
            aml::FieldAccessType::DWord,
            aml::FieldLockRule::NoLock,
            aml::FieldUpdateRule::WriteAsZeroes,
            registers,
        )
        .to_aml_bytes(sink);
        aml::Mutex::new("BLCK".into(), 0).to_aml_bytes(sink);
        for slot in 1..SLOTS {
            device(slot).to_aml_bytes(sink);
        }
        eject().to_aml_bytes(sink);
        notify_each().to_aml_bytes(sink);
        look().to_aml_bytes(sink);
    }
}

/// A slot, whatever is in it.
fn device(slot: u8) -> Made {
    made(&aml::Device::new(
        name_of(slot),
        vec![
            &aml::Name::new("_SUN".into(), &slot),
            // The device's number in the upper half, its function in the lower one (§6.1.1).
            &aml::Name::new("_ADR".into(), &(u32::from(slot) << 16)),
            &aml::Method::new(
                "_EJ0".into(),
                1,
                true,
                vec![&aml::MethodCall::new("PCEJ".into(), vec![&slot])],
            ),
        ],
    ))
}

/// `PCEJ(slot)`: the guest has let the slot go.
fn eject() -> Made {
    made(&aml::Method::new(
        "PCEJ".into(),
        1,
        true,
        vec![
            &aml::Acquire::new("BLCK".into(), FOREVER),
            &aml::ShiftLeft::new(&aml::Path::new("B0EJ"), &aml::ONE, &aml::Arg(0)),
            &aml::Release::new("BLCK".into()),
        ],
    ))
}

/// `DVNT(slots, notification)`: notifies each of the slots.
fn notify_each() -> Made {
    let tests: Vec<Made> = (1..SLOTS)
        .map(|slot| {
            made(&aml::If::new(
                &aml::And::new(&aml::ZERO, &aml::Arg(0), &(1_u32 << slot)),
                vec![&aml::Notify::new(&name_of(slot), &aml::Arg(1))],
            ))
        })
        .collect();
    let tests = tests.iter().map(|test| test as &dyn Aml).collect();
    made(&aml::Method::new("DVNT".into(), 2, true, tests))
}

/// `PCNT()`: sees what there is to see.
fn look() -> Made {
    let (filled, emptied) = (aml::Path::new("PCIU"), aml::Path::new("PCID"));
    made(&aml::Method::new(
        "PCNT".into(),
        0,
        true,
        vec![
            &aml::Acquire::new("BLCK".into(), FOREVER),
            &aml::MethodCall::new("DVNT".into(), vec![&filled, &DEVICE_CHECK]),
            &aml::MethodCall::new("DVNT".into(), vec![&emptied, &EJECT_REQUEST]),
            &aml::Release::new("BLCK".into()),
        ],
    ))
}

/// The general-purpose event's method; its name says that it is an edge, and its number.
pub(super) fn event() -> Vec<u8> {
    let name = format!("_E{:02X}", plug::EVENT);
    let look = aml::MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
    super::bytes(&aml::Scope::new(
        "_GPE".into(),
        vec![&aml::Method::new(name.as_str().into(), 0, true, vec![&look])],
    ))
}
