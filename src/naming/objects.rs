//! Which structures a slab cache holds, and which structure a lock is best known by.

use crate::kernel::btf::{Step, TypeId, Types};

/// Caches whose names do not say what is in them.
const CACHES: [(&str, &str); 70] = [
    ("filp", "file"),
    ("files_cache", "files_struct"),
    ("fs_cache", "fs_struct"),
    ("signal_cache", "signal_struct"),
    ("sighand_cache", "sighand_struct"),
    ("cred_jar", "cred"),
    ("key_jar", "key"),
    ("mnt_cache", "mount"),
    ("net_namespace", "net"),
    ("uid_cache", "user_struct"),
    ("posix_timers_cache", "k_itimer"),
    ("bdev_cache", "bdev_inode"),
    ("proc_inode_cache", "proc_inode"),
    ("sock_inode_cache", "socket_alloc"),
    ("nfs_inode_cache", "nfs_inode"),
    ("v9fs_inode_cache", "v9fs_inode"),
    ("skbuff_head_cache", "sk_buff"),
    ("blkdev_ioc", "io_context"),
    ("blkdev_queue", "request_queue"),
    ("eventpoll_epi", "epitem"),
    ("eventpoll_pwq", "eppoll_entry"),
    ("ep_head", "epitems_head"),
    ("userfaultfd_ctx_cache", "userfaultfd_ctx"),
    ("file_lock_cache", "file_lock"),
    ("pool_workqueue", "pool_workqueue"),
    ("jbd2_journal_head", "journal_head"),
    ("jbd2_transaction_s", "transaction_s"),
    ("ext4_groupinfo_4k", "ext4_group_info"),
    ("nf_conntrack", "nf_conn"),
    ("netfs_request", "netfs_io_request"),
    ("netfs_subrequest", "netfs_io_subrequest"),
    ("radix_tree_node", "xa_node"),
    ("bfilp", "backing_file"),
    ("fuse_request", "fuse_req"),
    ("skbuff_fclone_cache", "sk_buff_fclones"),
    ("pid_2", "pid"),
    ("pid_3", "pid"),
    ("numa_policy", "mempolicy"),
    ("tcp_bind_bucket", "inet_bind_bucket"),
    ("tcp_bind2_bucket", "inet_bind2_bucket"),
    ("tw_sock_TCPv6", "tcp6_timewait_sock"),
    ("request_sock_TCPv6", "tcp6_request_sock"),
    ("ip6_dst_cache", "rt6_info"),
    ("ip_dst_cache", "rtable"),
    ("ip4-frags", "ipq"),
    ("ip6-frags", "frag_queue"),
    ("PINGv6", "raw6_sock"),
    ("file_lock_ctx", "file_lock_context"),
    ("btrfs_extent_map", "extent_map"),
    ("btrfs_extent_buffer", "extent_buffer"),
    ("kvm_mmu_page_header", "kvm_mmu_page"),
    ("dax_cache", "dax_device"),
    ("xfs_buf_item", "xfs_buf_log_item"),
    ("xfs_ili", "xfs_inode_log_item"),
    ("UNIX", "unix_sock"),
    ("UNIX-STREAM", "unix_sock"),
    ("TCP", "tcp_sock"),
    ("TCPv6", "tcp6_sock"),
    ("UDP", "udp_sock"),
    ("UDPv6", "udp6_sock"),
    ("UDP-Lite", "udp_sock"),
    ("UDPLITEv6", "udp6_sock"),
    ("MPTCP", "mptcp_sock"),
    ("MPTCPv6", "mptcp6_sock"),
    ("RAW", "raw_sock"),
    ("RAWv6", "raw6_sock"),
    ("PING", "inet_sock"),
    ("AF_VSOCK", "vsock_sock"),
    ("request_sock_TCP", "tcp_request_sock"),
    ("tw_sock_TCP", "tcp_timewait_sock"),
];

/// Split page-table locks that do not fit into a struct page (mm/memory.c, ptlock_cache_init).
pub const PAGE_TABLE_LOCKS: &str = "page->ptl";

/// The structures in a cache of this name.
pub fn in_cache(types: &Types, cache: &str) -> Vec<TypeId> {
    if let Some((_, name)) = CACHES.iter().find(|(known, _)| *known == cache) {
        return types.structure(name).into_iter().collect();
    }
    let base = cache.trim_end_matches("_cachep").trim_end_matches("_cache").trim_end_matches("_slab");
    let with = |suffix: &str| format!("{base}{suffix}");
    // `ext4_inode` is what lies on the disk.
    let plain = if base.ends_with("_inode") { ["_info", ""] } else { ["", "_info"] };
    let guesses = [cache.to_string(), with(plain[0]), with("_struct"), with(plain[1]), with("_alloc")];
    guesses.iter().find_map(|name| types.structure(name)).into_iter().collect()
}

/// Structures that are parts of many others, and better known than those.
const WELL_KNOWN: [&str; 29] = [
    "inode",
    "address_space",
    "sock",
    "socket",
    "super_block",
    "device",
    "mm_struct",
    "signal_struct",
    "sighand_struct",
    "task_struct",
    "bdi_writeback",
    "backing_dev_info",
    "net_device",
    "netdev_queue",
    "Qdisc",
    "request_queue",
    "blk_mq_tags",
    "gendisk",
    "kernfs_root",
    "cgroup",
    "mem_cgroup",
    "zone",
    "lruvec",
    "tty_port",
    "hrtimer_cpu_base",
    "ctl_table_set",
    "perf_event_context",
    "worker_pool",
    "workqueue_struct",
];

/// What a lock may be: a member of a structure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// `inode.i_rwsem`
    pub name: String,
    /// The structure in the name.
    pub structure: String,
    /// What was allocated, where that is another structure: `ext4_inode_info`.
    pub object: Option<String>,
}

impl Candidate {
    /// By the way from what was allocated to the lock; `None` where no structure on it has a name.
    pub fn of(steps: &[Step<'_>]) -> Option<Candidate> {
        let outer = steps.iter().position(|step| !step.within.is_empty())?;
        let known = steps.iter().rposition(|step| WELL_KNOWN.contains(&step.within)).unwrap_or(outer);
        let (structure, object) = (steps[known].within, steps[outer].within);
        Some(Candidate {
            name: format!("{structure}.{}", members(&steps[known..])),
            structure: structure.to_string(),
            object: (structure != object).then(|| object.to_string()),
        })
    }
}

/// `mmap_lock.wait_lock`
pub fn members(steps: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in steps.iter().filter(|step| !step.member.is_empty()) {
        if !text.is_empty() && !step.member.starts_with('[') {
            text.push('.');
        }
        text.push_str(&step.member);
    }
    text
}

/// Words that many functions and structures have in their names.
const COMMON_WORDS: [&str; 44] = [
    "lock", "unlock", "mutex", "sem", "rwsem", "spin", "struct", "info", "data", "get", "put", "set", "read",
    "write", "the", "sys", "x64", "do", "to", "of", "in", "on", "is", "and", "for", "with", "list", "node",
    "entry", "ops", "priv", "private", "ctx", "base", "queue", "work", "wait", "new", "add", "del", "init",
    "free", "alloc", "all",
];

fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| word.len() > 1 && !COMMON_WORDS.contains(word))
}

/// How much of a candidate's name a function has in its own: `anon_pipe_read` of `pipe_inode_info.mutex`.
pub fn likeness(function: &str, candidate: &Candidate) -> usize {
    let mut score = 0;
    let text = match &candidate.object {
        Some(object) => format!("{object} {}", candidate.name),
        None => candidate.name.clone(),
    };
    let mut seen: Vec<&str> = Vec::new();
    for word in words(&text) {
        if seen.contains(&word) {
            continue;
        }
        seen.push(word);
        if words(function).any(|other| other == word) {
            score += 2;
        } else if word.len() >= 4 && words(function).any(|other| other.len() >= 4 && is_part(other, word)) {
            score += 1;
        }
    }
    score
}

fn is_part(one: &str, other: &str) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step<'s>(within: &'s str, member: &str) -> Step<'s> {
        Step { within, member: member.to_string() }
    }

    fn candidate(name: &str) -> Candidate {
        let structure = name.split('.').next().unwrap().to_string();
        Candidate { name: name.to_string(), structure, object: None }
    }

    #[test]
    fn a_cache_is_of_what_is_in_memory_and_not_on_the_disk() {
        use crate::kernel::btf::tests::Builder;
        let mut b = Builder::default();
        for name in ["ext4_inode", "ext4_inode_info", "inode", "file", "anon_vma", "fasync_struct"] {
            b.structure(name, 8, &[]);
        }
        let types = Types::parse(&b.bytes()).unwrap();
        for (cache, structure) in [
            ("ext4_inode_cache", Some("ext4_inode_info")),
            ("inode_cache", Some("inode")),
            ("filp", Some("file")),
            ("anon_vma", Some("anon_vma")),
            ("fasync_cache", Some("fasync_struct")),
            ("biovec-16", None),
        ] {
            let expected: Vec<_> = structure.and_then(|name| types.structure(name)).into_iter().collect();
            assert_eq!(in_cache(&types, cache), expected, "{cache}");
        }
    }

    #[test]
    fn a_lock_is_named_by_the_innermost_structure_that_is_well_known() {
        let steps = [step("ext4_inode_info", "vfs_inode"), step("inode", "i_rwsem")];
        let found = Candidate::of(&steps).unwrap();
        assert_eq!(found.name, "inode.i_rwsem");
        assert_eq!(found.object.as_deref(), Some("ext4_inode_info"));
        let steps = [
            step("unix_sock", "sk"),
            step("sock", "sk_receive_queue"),
            step("sk_buff_head", ""),
            step("sk_buff_head", "lock"),
        ];
        assert_eq!(Candidate::of(&steps).unwrap().name, "sock.sk_receive_queue.lock");
        let steps = [step("mm_struct", ""), step("", "mmap_lock"), step("rw_semaphore", "wait_lock")];
        let found = Candidate::of(&steps).unwrap();
        assert_eq!((found.name.as_str(), found.object), ("mm_struct.mmap_lock.wait_lock", None));
    }

    #[test]
    fn a_function_tells_which_of_several_structures_it_locked() {
        let best = |function: &str, names: &[&str]| {
            let mut names: Vec<&str> = names.to_vec();
            names.sort_by_key(|name| likeness(function, &candidate(name)));
            names.pop().unwrap().to_string()
        };
        let pipe = ["tty_buffer.mutex", "pipe_inode_info.mutex", "snd_card.mutex"];
        assert_eq!(best("anon_pipe_read", &pipe), "pipe_inode_info.mutex");
        assert_eq!(
            best("kdamond_fn", &["uart_state.lock", "damon_ctx.kdamond_lock"]),
            "damon_ctx.kdamond_lock"
        );
        assert_eq!(likeness("vfs_read", &candidate("pipe_inode_info.mutex")), 0);
        assert_eq!(likeness("mutex_lock_list", &candidate("list_thing.lock")), 0, "words that all have");
    }
}
