//! What goes over the line, and what does not.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::config::DiskFormat;
use crate::kvm::{CpuNeeds, HostKind};
use crate::snapshot::{Description, mock};

const SOON: Duration = Duration::from_secs(20);

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

fn line(stream: UnixStream) -> Line {
    Line::new(stream, SOON).unwrap()
}

fn encoded() -> ([u8; HEAD_BYTES], Vec<u8>) {
    let description = Description {
        cpu: Default::default(),
        host: HostKind::Hardware,
        needs: CpuNeeds { vendor: *b"GenuineIntel", words: Vec::new() },
    };
    message::encode((4, 0), description, &mock::state(Vec::new())).unwrap()
}

/// A guest with so many disks.
fn config(disks: Vec<DiskConfig>) -> VmmConfig {
    VmmConfig {
        memory_mib: 0,
        huge_pages: Default::default(),
        upgradable: true,
        vcpus: 0,
        cpu: Default::default(),
        boot: Boot::Disk,
        transport: Default::default(),
        system: None,
        cmdline: String::new(),
        disks,
        nics: Vec::new(),
        peripherals: Default::default(),
        console_log: None,
        control_socket: None,
        exit_report: None,
    }
}

fn document(config: VmmConfig, memory: InheritedFd) -> Document {
    let life = Life {
        main_console: MainConsole::Serial,
        runs: true,
        saved_ns: 1,
        stopped_ns: Some(2),
        first_run_us: Some(3),
        console_bytes: 4,
        times: 5,
    };
    Document { config, memory, streams: None, life }
}

/// A file with a line in it.
fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into()
}

/// Sends a guest with 40 disks of two files each; what its receiver makes of that, and what the sender hears.
fn hand_over(
    receiver: impl FnOnce(Line) -> Result<(), Error> + Send,
    change: impl FnOnce(&mut Document),
) -> (Result<(), Error>, Result<(), Error>) {
    let files: Vec<[OwnedFd; 2]> =
        (0..40).map(|number| [file(&format!("top {number}")), file(&format!("base {number}"))]).collect();
    let memory = file("memory");
    let format = DiskFormat::Overlay { file: InheritedFd(70), base: InheritedFd(71) };
    let own = DiskConfig::of(format);
    let mut given = Given::default();
    let disks = files.iter().map(|files| given.disk(&own, files)).collect();
    let mut document = document(config(disks), given.add(memory.as_fd()));
    change(&mut document);
    let (ours, theirs) = pair();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || receiver(line(theirs)));
        let (header, state) = encoded();
        let sent = send(&line(ours), (&header, &state), &document, &given);
        (sent, receiving.join().unwrap())
    })
}

#[test]
fn guest_arrives_with_all_its_descriptors_in_order_and_is_given_when_its_receiver_can_have_it() {
    let receiver = |line: Line| {
        let mut arrived = receive(&line)?;
        assert_eq!((arrived.header.memory_mib, arrived.header.vcpus), (4, 1));
        assert_eq!(arrived.document.life.console_bytes, 4);
        for (number, disk) in arrived.document.config.disks.iter().enumerate() {
            for (fd, what) in inherited::of_disk(disk).into_iter().zip(["top", "base"]) {
                let (mut text, file) = (vec![0; 20], File::from(arrived.descriptors.take(fd)));
                let read = std::os::unix::fs::FileExt::read_at(&file, &mut text, 0).unwrap();
                assert_eq!(text[..read], *format!("{what} {number}").as_bytes());
            }
        }
        answer(&line, None)?;
        wait_until_given(&line)
    };
    let (sent, received) = hand_over(receiver, |_| ());
    sent.unwrap();
    received.unwrap();
}

#[test]
fn receiver_that_cannot_says_why_and_is_not_given_it() {
    let receiver = |line: Line| {
        receive(&line)?;
        answer(&line, Some("its host lacks avx"))?;
        wait_until_given(&line)
    };
    let (sent, received) = hand_over(receiver, |_| ());
    assert_eq!(sent.unwrap_err().to_string(), "the successor cannot take the guest over: its host lacks avx");
    let nothing = received.unwrap_err();
    assert!(matches!(&nothing, Error::Talk { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof));
}

#[test]
fn document_that_names_other_descriptors_or_something_to_boot_is_refused() {
    let refused = |change: fn(&mut Document)| {
        let receiver = |line: Line| receive(&line).map(drop);
        hand_over(receiver, change).1.unwrap_err().to_string()
    };
    for change in [
        (|document| document.memory = InheritedFd(0)) as fn(&mut Document),
        |document| document.memory = InheritedFd(-1),
        |document| drop(document.config.disks.pop()),
    ] {
        let said = refused(change);
        assert!(said.contains("not those that its document names"), "{said}");
    }
    let boots = refused(|document| document.config.boot = Boot::Firmware { firmware: InheritedFd(81) });
    assert!(boots.contains("something is to be booted"), "{boots}");
}

#[test]
fn whatever_else_comes_is_refused_and_nobody_waits_for_ever() {
    let (header, state) = encoded();
    let text = serde_json::to_vec(&document(config(Vec::new()), InheritedFd(0))).unwrap();
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..8].copy_from_slice(&MAGIC);
    prefix[8..12].copy_from_slice(&VERSION.to_le_bytes());
    prefix[12..16].copy_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
    let whole = [&prefix[..], &header, &text, &state].concat();
    let receive_bytes = |bytes: &[u8]| {
        let (mut ours, theirs) = pair();
        std::thread::scope(|scope| {
            let receiving = scope.spawn(move || receive(&line(theirs)).map(drop));
            // The receiver may have gone before the end.
            let _ = ours.write_all(bytes);
            drop(ours);
            receiving.join().unwrap()
        })
    };
    let refused = |bytes: &[u8]| receive_bytes(bytes).unwrap_err();
    assert!(refused(&whole).to_string().contains("not those that its document names"), "memory is missing");
    for end in (0..whole.len()).step_by(97) {
        assert!(matches!(refused(&whole[..end]), Error::Talk { .. }), "{end}");
    }
    for (at, value) in
        [(0, 0), (8, 9), (15, 0xff), (19, 0xff), (30, 1), (24 + 8, 1), (PREFIX_BYTES + HEAD_BYTES, b'x')]
    {
        let mut wrong = whole.clone();
        wrong[at] = value;
        let error = refused(&wrong);
        assert!(!matches!(error, Error::Talk { .. }), "{at}: {error}");
    }
    let mut wrong = whole.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert!(matches!(refused(&wrong), Error::Snapshot(snapshot::Error::Damaged("state"))));

    let (_ours, theirs) = pair();
    let began = Instant::now();
    let short = Line::new(theirs, Duration::from_millis(30)).unwrap();
    assert!(receive(&short).map(drop).unwrap_err().to_string().contains("receive the guest"));
    assert!(began.elapsed() < SOON);
}

#[test]
fn document_is_what_was_agreed_on() {
    let text = serde_json::to_string(&document(config(Vec::new()), InheritedFd(0))).unwrap();
    let (_, life) = text.split_once(r#""memory":"#).unwrap();
    assert_eq!(
        life,
        "0,\"streams\":null,\"life\":{\"main_console\":\"serial\",\"runs\":true,\"saved_ns\":1,\"stopped_ns\":2,\
         \"first_run_us\":3,\"console_bytes\":4,\"times\":5}}"
    );
}

/// What a VMM sent of a guest, up to its descriptors.
struct Sample {
    bytes: &'static [u8],
    /// How many descriptors came behind it.
    descriptors: usize,
    /// Its memory in MiB, its processors, and how much it had written to its console.
    guest: (u32, u8, u64),
}

const SAMPLES: [Sample; 2] = [
    // When version 1 was new: of a guest with two processors, a raw disk and an overlay, a network device, all peripherals
    // but memory that comes and goes, on PCI.
    Sample { bytes: include_bytes!("tests/version-1.message"), descriptors: 12, guest: (64, 2, 194) },
    // Of a later program, when network devices had several pairs of queues: of a guest with two processors, a disk, and a network
    // device of two pairs with limits and an endpoint that was told all that one can be, on PCI. `tests/tiny_guest/samples.rs` made it.
    Sample { bytes: include_bytes!("tests/version-1-network.message"), descriptors: 7, guest: (32, 2, 389) },
];

/// What the machines in them were made of, and their states.
pub(crate) fn samples() -> [(VmmConfig, MachineState); 2] {
    SAMPLES.map(|Sample { bytes, .. }| {
        let (head, rest) = bytes[PREFIX_BYTES..].split_first_chunk().unwrap();
        let (header, length) = message::decode_head(head).unwrap();
        let (document, state) = rest.split_at(rest.len() - length);
        let document: Document = serde_json::from_slice(document).unwrap();
        (document.config, message::decode_state(&header, state).unwrap())
    })
}

/// Fails where a form has changed and its version has not: then older programs would take what they cannot read, or refuse
/// what they can. What only some guests have may be left out for all others. Raise [`VERSION`] or the snapshot's, have what is
/// of the version before read or refused by its number, and put samples of the new one beside these (`WISP_SAMPLES=DIR` has
/// `tests/tiny_guest/samples.rs` write them). One is replaced by none of the same version: it says what a program of then sends, which
/// may be the one that has a guest. It goes when its version is read no more.
#[test]
fn what_version_1_sent_is_read_and_would_be_sent_again() {
    assert_eq!((VERSION, snapshot::VERSION), (1, 3), "the samples are of other versions");
    SAMPLES.iter().for_each(is_read_and_sent_again);
}

fn is_read_and_sent_again(sample: &Sample) {
    let (ours, theirs) = pair();
    let arrived = std::thread::scope(|scope| {
        let receiving = scope.spawn(move || receive(&line(theirs)));
        let sending = line(ours);
        sending.send(sample.bytes, &[]).unwrap();
        let some = file("");
        sending.send(&[0], &vec![some.as_fd(); sample.descriptors]).unwrap();
        receiving.join().unwrap().unwrap()
    });
    let Arrived { header, state, document, .. } = arrived;
    assert_eq!((header.memory_mib, header.vcpus, document.life.console_bytes), sample.guest);
    let (head, rest) = sample.bytes[PREFIX_BYTES..].split_at(HEAD_BYTES);
    let description = Description { cpu: header.cpu, host: header.host, needs: header.needs };
    let (mut again, state) = message::encode((header.memory_mib, 0), description, &state).unwrap();
    // Its id, when it was taken, the checksum over both.
    for place in [16..32, 48..56, HEAD_BYTES - 4..HEAD_BYTES] {
        again[place.clone()].copy_from_slice(&head[place]);
    }
    assert!(again == head, "the header's form");
    let text = serde_json::to_vec(&document).unwrap();
    let (before, after) = rest.split_at(text.len().min(rest.len()));
    assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(before), "the document's form");
    assert!(state == after, "the form of the machine's state");
}

#[test]
fn answer_is_bounded_on_both_sides() {
    let (ours, mut theirs) = pair();
    answer(&line(ours), Some(&"x".repeat(2 * REASON_BYTES_MAX))).unwrap();
    let mut length = [0; 4];
    theirs.read_exact(&mut length).unwrap();
    assert_eq!(u32::from_le_bytes(length), 4096);

    let receiver = |line: Line| {
        receive(&line)?;
        line.send(&u32::MAX.to_le_bytes(), &[]).map_err(talk("answer"))
    };
    assert!(matches!(hand_over(receiver, |_| ()).0, Err(Error::Invalid(_))));
}
