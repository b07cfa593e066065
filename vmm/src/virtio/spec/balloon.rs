//! Memory balloons (VIRTIO 1.3 §5.5).

/// Index of the queue of pages that the guest gives.
pub const QUEUE_INFLATE: usize = 0;
/// Index of the queue of pages that it takes back.
pub const QUEUE_DEFLATE: usize = 1;
/// Index of the queue of statistics.
pub const QUEUE_STATISTICS: usize = 2;
/// Index of the queue of hints; of reports for a driver that takes no hints and does not count their queue.
pub const QUEUE_HINTS: usize = 3;
/// Index of the queue of reports.
pub const QUEUE_REPORTS: usize = 4;

/// There are statistics (`VIRTIO_BALLOON_F_STATS_VQ`).
pub const F_STATS_VQ: u64 = 1 << 1;
/// A guest without memory takes pages back by itself (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Free pages are hinted at when the device asks (`VIRTIO_BALLOON_F_FREE_PAGE_HINT`).
pub const F_FREE_PAGE_HINT: u64 = 1 << 3;
/// The driver says what it fills free pages with (`VIRTIO_BALLOON_F_PAGE_POISON`).
pub const F_PAGE_POISON: u64 = 1 << 4;
/// Free pages are reported (`VIRTIO_BALLOON_F_PAGE_REPORTING`).
pub const F_PAGE_REPORTING: u64 = 1 << 5;

/// Bytes of the configuration space: num_pages u32 @0, actual u32 @4, free_page_hint_cmd_id u32 @8, poison_val u32 @12 (§5.5.4).
pub const CONFIG_BYTES: usize = 16;
/// Offset of `actual`.
pub const CONFIG_ACTUAL: u64 = 4;
/// Offset of `poison_val`.
pub const CONFIG_POISON: u64 = 12;
/// `free_page_hint_cmd_id`, and what a driver says last: no more hints (`VIRTIO_BALLOON_CMD_ID_STOP`).
pub const HINTS_STOP: u32 = 0;
/// `free_page_hint_cmd_id`: what was hinted at may be used again (`VIRTIO_BALLOON_CMD_ID_DONE`).
pub const HINTS_DONE: u32 = 1;
/// The least number of a request for hints.
pub const HINTS_FIRST: u32 = 2;

/// Statistic: bytes read from swap.
pub const S_SWAP_IN: u16 = 0;
/// Statistic: bytes written to swap.
pub const S_SWAP_OUT: u16 = 1;
/// Statistic: major faults.
pub const S_MAJFLT: u16 = 2;
/// Statistic: minor faults.
pub const S_MINFLT: u16 = 3;
/// Statistic: free bytes.
pub const S_MEMFREE: u16 = 4;
/// Statistic: all bytes.
pub const S_MEMTOT: u16 = 5;
/// Statistic: available bytes.
pub const S_AVAIL: u16 = 6;
/// Statistic: bytes of caches.
pub const S_CACHES: u16 = 7;
