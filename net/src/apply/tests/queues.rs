//! Taps with several queues.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

use super::*;
use crate::tap::{create_queues, open, open_queues};

#[test]
fn tap_of_before_is_made_anew_for_several_queues_and_serves_for_one_afterwards() {
    in_own_network(|| {
        let wanted = network(&[(1, 1), (2, 1)]);
        let mut host = host(&wanted);
        let name = TAG.tap(1);
        let index = |host: &mut Host| host.existing(&name).unwrap();
        let before = index(&mut host);
        let held = host.add_port(&wanted, &name).unwrap();
        let busy = host.add_port_of(&wanted, &name, 2).unwrap_err();
        assert!(matches!(&busy, Error::Tap(error) if error.is_busy()), "{busy}");
        assert_eq!(index(&mut host), before, "what somebody has open stays");
        drop(held);

        let queues = host.add_port_of(&wanted, &name, 3).unwrap();
        assert_eq!(queues.len(), 3);
        let several = index(&mut host);
        assert_ne!(several, before);
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), [], "it is at its bridge with its rules");
        for count in [1, 2] {
            let busy = host.add_port_of(&wanted, &name, count).unwrap_err();
            assert!(matches!(&busy, Error::Tap(error) if error.is_busy()), "{busy}");
        }
        drop(queues);
        drop(host.add_port(&wanted, &name).unwrap());
        assert_eq!(host.add_port_of(&wanted, &name, 2).unwrap().len(), 2);
        assert_eq!(index(&mut host), several, "it may have any number of queues");
    });
}

#[test]
fn frames_are_in_whichever_queue_and_none_is_lost() {
    in_own_network(|| {
        let wanted = network(&[(1, 1), (2, 1)]);
        let mut host = host(&wanted);
        let sender = Guest::at(1);
        let queues = host.add_port_of(&wanted, &TAG.tap(2), 4).unwrap();
        wait_until_forwarding(&TAG.tap(2));
        let mut queues: Vec<File> = queues.into_iter().map(File::from).collect();
        let flows: u16 = 64;
        (0..flows).for_each(|flow| sender.send(&udp(ends(1, 2), 4000 + flow, 5000)));
        let mut came = [0_u16; 4];
        let mut buffer = [0; 2048];
        let deadline = Instant::now() + Duration::from_secs(10);
        while came.iter().sum::<u16>() < flows && Instant::now() < deadline {
            for (queue, count) in queues.iter_mut().zip(&mut came) {
                while let Ok(length) = queue.read(&mut buffer) {
                    // Behind the header of virtio: what the kernel itself says is none of it.
                    *count += u16::from(buffer[..length].get(24..26) == Some(&[8, 0]));
                }
            }
        }
        assert_eq!(came.iter().sum::<u16>(), flows, "{came:?}");
        assert!(came.iter().filter(|count| **count > 0).count() > 1, "{came:?}");
    });
}

#[test]
fn tap_for_one_queue_says_how_it_would_have_more() {
    in_own_network(|| {
        drop(create_queues("gone", 2).unwrap());
        let one = create_queues("few", 1).unwrap();
        tap::persist(&one[0], "few").unwrap();
        let busy = open_queues("few", 2).unwrap_err();
        assert!(busy.is_busy(), "{busy}");
        drop(one);
        let error = open_queues("few", 2).unwrap_err().to_string();
        assert!(
            error.contains("tap few was made to have one queue") && error.contains("multi_queue"),
            "{error}"
        );
        drop(open("few").unwrap());
        assert_eq!(open_queues("made", 3).unwrap().len(), 3, "one that is not there is made");
        foreign_bridge("bridge");
        for queues in [1, 2] {
            let error = open_queues("bridge", queues).unwrap_err();
            assert!(matches!(error, tap::Error::Attach { .. }) && !error.is_busy(), "{error}");
        }
    });
}
