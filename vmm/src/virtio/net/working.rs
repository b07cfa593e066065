//! How the queues of a device are worked off, one direction and then the other, and what its driver commands.
//!
//! Must never know: what is in a packet.

use std::time::Instant;

use event_manager::EventOps;

use super::super::limiter::Direction;
use super::super::link::Link;
use super::super::queue::{Progress, QueueError, VirtQueue};
use super::super::spec::{device_type, net as spec};
use super::super::{Activation, arm, broken, kick};
use super::ends::Place;
use super::receiving::Reached;
use super::{Net, Pair, Role, control};

/// Turns of both directions before the event loop serves its other devices.
const TURNS_MAX: u32 = 16;

impl<L: Link> Net<L> {
    /// Looks at one queue, or where none is given at all of them.
    pub(super) fn work(&mut self, ops: &mut EventOps<'_>, role: Option<Role>, transmit: bool) {
        let rests = self.held || (self.closed && role != Some(Role::Control));
        let Some(mut active) = self.active.take_if(|_| !rests) else { return self.ends.ignore(ops) };
        if std::mem::take(&mut self.offloads_due)
            && let Err(error) = self.ends.of(Place { pair: 0, used: 1 }).set_offloads(active.features)
        {
            tracing::warn!(%error, "the tap takes no offloads; the guest's connections may stall");
        }
        let began = Instant::now();
        let before = active.used();
        let done = match role {
            Some(Role::Receive(pair)) => self.pass(&mut active, ops, pair, false),
            Some(Role::Transmit(pair)) => self.pass(&mut active, ops, pair, true),
            Some(Role::Control) => self.obey(&mut active),
            None => {
                // Another is the first each time: where a limit stops them, none waits for ever.
                let count = self.pairs_of(active.features);
                let first = (self.first + 1) % count;
                self.first = first;
                let mut order = (0..count).map(|step| (first + step) % count);
                order.try_for_each(|pair| self.pass(&mut active, ops, pair, transmit))
            }
        };
        if let Err(error) = done {
            broken(&active, device_type::NET, error);
            return self.ends.ignore(ops);
        }
        if active.used() != before {
            self.busy.get_or_insert(began);
        }
        self.active = Some(active);
        self.pass_questions();
        let answers = self.passing.endpoint.as_mut().and_then(|endpoint| endpoint.poll_delay(Instant::now()));
        let delay = answers.into_iter().chain(self.passing.shaper.delay()).chain(self.flap.delay()).min();
        if delay.is_some() || self.timer_armed {
            arm(&mut self.timer, delay);
            self.timer_armed = delay.is_some();
        }
    }

    /// Works off both directions of a pair and settles what to listen to. What a pair has to send is sent though the driver uses it no
    /// more, and is answered to one that it uses.
    fn pass(
        &mut self,
        active: &mut Activation,
        ops: &mut EventOps<'_>,
        pair: usize,
        transmit: bool,
    ) -> Result<(), QueueError> {
        let transmit = transmit || self.is_awake;
        let mut progress = (Progress::Empty, None);
        for _ in 0..TURNS_MAX {
            let sent = if transmit { self.transmit(active, pair)? } else { Progress::Empty };
            progress = (sent, self.receive(active, pair % self.used)?);
            if progress.0 != Progress::More && progress.1 != Some(Reached::More) {
                break;
            }
        }
        let (sent, reached) = progress;
        let Self { ends, pairs, passing, queue_events, .. } = self;
        if sent == Progress::More {
            kick(&queue_events[spec::QUEUES_OF_PAIR * pair + spec::QUEUE_TX]);
        }
        let pair = pair % self.used;
        if reached == Some(Reached::More) {
            kick(&queue_events[spec::QUEUES_OF_PAIR * pair + spec::QUEUE_RX]);
        }
        let failed = pairs[pair].receiver.link_failed;
        let waits = failed || passing.shaper.is_waiting(Direction::Read);
        let listens = !waits && reached.is_some_and(|reached| reached != Reached::Starved);
        ends.watch(ops, Place { pair, used: self.used }, listens);
        if failed {
            tracing::debug!("a guest's network link failed");
        }
        Ok(())
    }

    /// Sends some of what a pair has.
    fn transmit(&mut self, active: &mut Activation, pair: usize) -> Result<Progress, QueueError> {
        let Self { ends, pairs, used, sender, passing, .. } = self;
        let index = spec::QUEUES_OF_PAIR * pair + spec::QUEUE_TX;
        let queue = &mut active.queues[index];
        if !queue.is_used() || passing.shaper.is_waiting(Direction::Write) {
            return Ok(Progress::Empty);
        }
        let told = (active.features, &mut pairs[pair].sent);
        let progress = sender.transmit(&mut ends.of(Place { pair, used: *used }), passing, queue, told)?;
        active.signal(index);
        Ok(progress)
    }

    /// Receives some of what there is for a pair, if the driver has set it up.
    fn receive(&mut self, active: &mut Activation, pair: usize) -> Result<Option<Reached>, QueueError> {
        let Self { ends, pairs, used, passing, .. } = self;
        let index = spec::QUEUES_OF_PAIR * pair + spec::QUEUE_RX;
        let queue = &mut active.queues[index];
        if !queue.is_used() {
            return Ok(None);
        }
        let mut ends = ends.of(Place { pair, used: *used });
        let reached = pairs[pair].receiver.receive(&mut ends, passing, queue, active.features)?;
        active.signal(index);
        Ok(Some(reached))
    }

    /// Does what the driver commands: uses as many pairs as it says, if it has set them up.
    fn obey(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let has_pairs = active.features & spec::F_MQ != 0;
        let index = spec::QUEUES_OF_PAIR * self.pairs_of(active.features);
        let set_up = active.queues.chunks_exact(spec::QUEUES_OF_PAIR);
        let set_up = set_up.take_while(|pair| pair.iter().all(VirtQueue::is_used)).count();
        let usable = if has_pairs { set_up } else { 0 };
        let (progress, wanted) = control::obey(&mut active.queues[index], &mut self.command, usable)?;
        if let Some(used) = wanted {
            self.use_pairs(used);
        }
        active.settle(index, progress, &self.queue_events).map(drop)
    }

    /// Uses so many pairs from now on, which are looked at next, since each reads other ends. What the others had from the link and
    /// not delivered is lost.
    fn use_pairs(&mut self, used: usize) {
        self.used = used;
        for Pair { receiver, .. } in &mut self.pairs[used..] {
            receiver.lose_waiting();
        }
        let events = self.queue_events.iter().step_by(spec::QUEUES_OF_PAIR);
        events.take(used).for_each(kick);
    }
}
