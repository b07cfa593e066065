//! The console.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use super::super::VirtioDevice as _;
use super::super::console::{Console, INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, Output, build_console};
use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue};
use super::super::spec::console as spec;
use super::*;
use crate::config::CONSOLE_LOG_BYTES_MAX;
use crate::serial::{self, ConsoleLog};

struct Driver {
    device: Arc<Mutex<Console>>,
    guest: MockGuest,
    rx: MockQueue,
    tx: MockQueue,
}

impl Driver {
    fn new(output: Output) -> Self {
        let device = build_console(output).unwrap();
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let queues = guest.bring_up(spec::F_SIZE, &[8, 8]);
        Self { device, guest, rx: queues[0], tx: queues[1] }
    }

    fn log() -> (Self, File) {
        let file = tempfile::tempfile().unwrap();
        let log = ConsoleLog::new(file.try_clone().unwrap()).unwrap();
        (Self::new(Output::Stream(serial::Console::Log(log))), file)
    }

    /// Has the guest write `bytes`, in two buffers, and get them back.
    fn say(&mut self, bytes: &[u8]) {
        self.guest.put(BUFFERS_START, bytes);
        let (middle, length) = (bytes.len() as u32 / 2, bytes.len() as u32);
        let parts = [
            MockDescriptor::readable(BUFFERS_START, middle),
            MockDescriptor::readable(BUFFERS_START + u64::from(middle), length - middle),
        ];
        self.tx.submit(&self.guest.memory, &parts);
        self.guest.kick(1);
        assert!(self.tx.take_used(&self.guest.memory).is_some(), "output is taken at once");
    }

    /// Offers a buffer for input.
    fn offer(&mut self, at: u64, length: u32) {
        self.rx.submit(&self.guest.memory, &[MockDescriptor::writable(BUFFERS_START + at, length)]);
        self.guest.kick(0);
    }

    /// What a buffer at `at` was given.
    fn heard(&mut self, at: u64) -> Option<Vec<u8>> {
        let (_, length) = self.rx.take_used(&self.guest.memory)?;
        Some(self.guest.get(BUFFERS_START + at, length as usize))
    }
}

#[test]
fn output_is_in_the_log_which_stays_bounded() {
    let (mut driver, file) = Driver::log();
    driver.say(b"first words\n");
    assert_eq!(driver.device.lock().unwrap().tail(100).unwrap(), b"first words\n");
    assert_eq!(driver.guest.take_interrupts(), 1);
    let text = vec![b'x'; 60 << 10];
    for _ in 0..40 {
        driver.say(&text);
    }
    assert!(file.metadata().unwrap().len() <= CONSOLE_LOG_BYTES_MAX);
    driver.say(b"last words\n");
    assert_eq!(driver.device.lock().unwrap().tail(11).unwrap(), b"last words\n");
}

#[test]
fn buffer_of_output_that_is_too_long_is_cut() {
    let (mut driver, file) = Driver::log();
    driver.say(&vec![b'y'; OUTPUT_BYTES_MAX as usize + 5000]);
    assert_eq!(file.metadata().unwrap().len(), OUTPUT_BYTES_MAX);
    assert!(!driver.guest.needs_reset());
}

#[test]
fn input_waits_for_buffers_in_its_order_and_is_bounded() {
    let (mut driver, _) = Driver::log();
    driver.device.lock().unwrap().input(b"abcdef");
    assert_eq!(driver.heard(0), None);
    driver.offer(0, 4);
    assert_eq!(driver.heard(0).unwrap(), b"abcd");
    driver.offer(0, 4);
    assert_eq!(driver.heard(0).unwrap(), b"ef");
    driver.offer(0, 4);
    assert_eq!(driver.heard(0), None, "nothing is there");
    driver.device.lock().unwrap().input(b"g");
    assert_eq!(driver.heard(0).unwrap(), b"g");
    let many = vec![b'z'; 2 * INPUT_BYTES_MAX];
    driver.device.lock().unwrap().input(&many);
    driver.offer(0, 1 << 16);
    assert_eq!(driver.heard(0).unwrap().len(), INPUT_BYTES_MAX);
}

#[test]
fn guest_that_stands_still_neither_hears_nor_is_heard() {
    let (mut driver, file) = Driver::log();
    driver.device.lock().unwrap().hold(true);
    driver.device.lock().unwrap().input(b"x");
    driver.offer(0, 4);
    driver.tx.submit(&driver.guest.memory, &[MockDescriptor::readable(BUFFERS_START, 4)]);
    driver.guest.kick(1);
    assert!(driver.heard(0).is_none() && file.metadata().unwrap().len() == 0);
    driver.device.lock().unwrap().hold(false);
    driver.guest.run();
    assert!(driver.heard(0).is_some() && file.metadata().unwrap().len() == 4);
}

#[test]
fn terminal_that_changes_its_size_tells_the_guest_once() {
    let (mut driver, _) = Driver::log();
    driver.device.lock().unwrap().resize(80, 25);
    driver.device.lock().unwrap().resize(80, 25);
    assert_eq!(driver.guest.take_interrupts(), 1);
    assert_eq!(driver.guest.read_config::<4>(0), [80, 0, 25, 0]);
}

#[test]
fn broken_queue_asks_for_a_reset_and_a_new_start_works() {
    let (mut driver, file) = Driver::log();
    driver.tx.submit(&driver.guest.memory, &[MockDescriptor::readable(u64::MAX - 4, 8)]);
    driver.guest.kick(1);
    assert!(driver.guest.needs_reset());
    let queues = driver.guest.bring_up(0, &[8, 8]);
    (driver.rx, driver.tx) = (queues[0], queues[1]);
    driver.say(b"again");
    assert_eq!(file.metadata().unwrap().len(), 5);
}

fn socket() -> (Driver, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("hvc0")).unwrap();
    listener.set_nonblocking(true).unwrap();
    (Driver::new(Output::Socket(listener)), directory)
}

fn connect(directory: &tempfile::TempDir) -> UnixStream {
    let stream = UnixStream::connect(directory.path().join("hvc0")).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    stream
}

#[test]
fn who_connects_last_has_the_console() {
    let (mut driver, directory) = socket();
    driver.say(b"nobody hears this");
    let mut first = connect(&directory);
    driver.guest.run();
    driver.say(b"hello");
    let mut bytes = [0; 5];
    first.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    first.write_all(b"typed").unwrap();
    driver.offer(0, 64);
    driver.guest.run();
    assert_eq!(driver.heard(0).unwrap(), b"typed");

    let mut second = connect(&directory);
    driver.guest.run();
    driver.say(b"other");
    second.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"other");
    assert_eq!(first.read(&mut bytes).unwrap(), 0, "the first was cut off");
    drop(second);
    driver.guest.run();
    driver.say(b"nobody hears this either");
    assert!(driver.guest.run());
}

#[test]
fn who_does_not_read_loses_output_and_the_guest_goes_on() {
    let (mut driver, directory) = socket();
    let mut client = connect(&directory);
    driver.guest.run();
    for _ in 0..40 {
        driver.say(&[b'x'; 32 << 10]);
    }
    assert!(driver.guest.run());
    let (mut got, mut bytes) = (0, vec![0; 1 << 16]);
    client.set_nonblocking(true).unwrap();
    while let Ok(count) = client.read(&mut bytes) {
        got += count;
        driver.guest.run();
    }
    assert!(got > 32 << 10 && got < 40 * (32 << 10), "{got}");
    driver.say(b"and after that");
    assert_eq!(client.read(&mut bytes).unwrap(), 14);
}

#[test]
fn what_is_typed_faster_than_the_guest_reads_stays_in_the_socket() {
    let (mut driver, directory) = socket();
    let mut client = connect(&directory);
    let text: Vec<u8> = (0..3 * INPUT_BYTES_MAX).map(|index| (index % 251) as u8).collect();
    client.write_all(&text).unwrap();
    assert!(driver.guest.run(), "a full buffer does not spin");
    let mut heard = Vec::new();
    while heard.len() < text.len() {
        driver.offer(0, 1000);
        driver.guest.run();
        heard.extend(driver.heard(0).expect("there is more"));
    }
    assert_eq!(heard, text);
}

#[test]
fn device_without_a_driver_drops_no_connection() {
    let (driver, directory) = socket();
    let Driver { device, mut guest, .. } = driver;
    guest.set_status(0);
    let mut client = connect(&directory);
    client.write_all(b"early").unwrap();
    guest.run();
    let queues = guest.bring_up(0, &[8, 8]);
    let mut driver = Driver { device, guest, rx: queues[0], tx: queues[1] };
    driver.offer(0, 64);
    driver.guest.run();
    assert_eq!(driver.heard(0).unwrap(), b"early");
}
