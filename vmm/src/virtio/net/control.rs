//! The control queue (VIRTIO 1.3 §5.1.6.5), by which a driver says how many pairs it uses. No other command is offered, and any other is
//! refused.
//!
//! A command is class u8, command u8 and its data, to be read, then ack u8, to be written. One without room for its answer breaks the
//! queue, as on any device here.
//!
//! Must never know: links, packets.

use super::super::queue::{Chain, Handled, Progress, QueueError, VirtQueue};
use super::super::spec::net as spec;

/// Commands that are obeyed before the event loop serves its other devices.
const BATCH_COMMANDS_MAX: u16 = 16;

/// Works off the queue of a driver that may use up to so many pairs, none if it may not say so; how many it wants, if it said.
pub(super) fn obey(
    queue: &mut VirtQueue,
    chain: &mut Chain,
    usable: usize,
) -> Result<(Progress, Option<usize>), QueueError> {
    let mut wanted = None;
    let progress = queue.work_off(chain, BATCH_COMMANDS_MAX, |memory, chain| {
        if chain.writable_bytes() == 0 {
            return Err(QueueError::Outcome);
        }
        let mut command = [0; 4];
        let length = chain.read_at(memory, 0, &mut command);
        let pairs = pairs_of(&command[..length]).filter(|pairs| (1..=usable).contains(pairs));
        wanted = pairs.or(wanted);
        let ack = if pairs.is_some() { spec::CTRL_OK } else { spec::CTRL_ERR };
        chain.write_at(memory, 0, &[ack]);
        Ok(Handled::Used(1))
    })?;
    Ok((progress, wanted))
}

/// The number in a command to use so many pairs.
fn pairs_of(command: &[u8]) -> Option<usize> {
    let (name, data) = command.split_first_chunk()?;
    let pairs = data.first_chunk().map(|pairs| u16::from_le_bytes(*pairs));
    pairs.filter(|_| *name == spec::CTRL_MQ_VQ_PAIRS_SET).map(usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_command_of_the_one_kind_has_a_number() {
        assert_eq!(pairs_of(&[4, 0, 3, 0]), Some(3));
        assert_eq!(pairs_of(&[4, 0, 0, 1]), Some(256));
        for none in [&[][..], &[4], &[4, 0], &[4, 0, 1], &[4, 1, 1, 0], &[0, 0, 1, 0], &[4, 2, 1, 0]] {
            assert_eq!(pairs_of(none), None, "{none:?}");
        }
    }
}
