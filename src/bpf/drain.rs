//! Maps → wire records.

use super::load::Tracer;
use super::skel::types;
use super::{blame_wire, futex_wire, wire};
use crate::model::{LockId, LockKind, RawCapture, SiteId, WaitStats};
use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

/// Entries asked for per system call; a bucket larger than this doubles it.
const BATCH: usize = 1024;

impl Tracer {
    /// Reads everything out. Call after [`Tracer::deactivate`]; the maps keep their contents.
    /// `stop_ns`: when it was deactivated.
    pub fn collect(&self, stop_ns: u64) -> Result<RawCapture> {
        let maps = &self.skel().maps;
        let mut capture = RawCapture { stop_ns, ..Default::default() };
        let since_epoch_ns = stop_ns.saturating_sub(self.epoch_ns());

        each(&maps.sites, |key: types::site_key, value: types::site_stats| {
            if let Some(id) = wire::site_id(&key) {
                let phases_known = self.tells_spinning(id.lock.kind);
                capture.sites.push((id, wire::wait_stats(&value, phases_known)));
            }
        })
        .context("Failed to read the map of waits per site")?;
        each(&maps.locks, |key: types::lock_key, value: types::lock_stats| {
            if let Some(id) = wire::lock_id(&key) {
                capture.contended_holds.extend(futex_wire::contended_holds(&value).map(|holds| (id, holds)));
                capture
                    .blames
                    .extend(blame_wire::account(&value.queue, since_epoch_ns).map(|blame| (id, blame)));
                capture.locks.insert(id, wire::raw_lock(&value));
                let place = wire::slab_place(value.slab_cache, value.slab_offset);
                capture.slab_places.extend(place.map(|place| (key.addr, place)));
            }
        })
        .context("Failed to read the map of locks")?;
        each(&maps.owners, |key: types::owner_key, value: types::owner_stats| {
            capture.owners.extend(wire::lock_owner(&key, &value));
        })
        .context("Failed to read the map of owners")?;
        self.collect_blame(&mut capture)?;
        capture.kinds_with_releases = self.kinds_with_releases().to_vec();
        each(&maps.holds, |key: types::lock_key, value: types::hold_stats| {
            if let Some(id) = wire::lock_id(&key) {
                capture.holds.insert(id, wire::hold_stats(&value));
                let place = wire::slab_place(value.slab_cache, value.slab_offset);
                capture.slab_places.extend(place.map(|place| (key.addr, place)));
            }
        })
        .context("Failed to read the map of holds")?;
        each_bytes(&maps.stacks, |key, value| {
            let id = u64::from_ne_bytes(key.try_into().expect("the key is a u64"));
            capture.stacks.insert(id, wire::frames(&wire::read(value)));
        })
        .context("Failed to read the map of stacks")?;
        each(&maps.waits, |key: types::wait_key, value: types::wait| {
            // 0: it ended, and the kernel refused to delete it just then.
            if value.begin_ns != 0 {
                capture.in_flight.extend(wire::raw_wait(&key, &value));
            }
        })
        .context("Failed to read the map of ongoing waits")?;

        each(&maps.releases, |key: types::release_key, value: types::release_stats| {
            capture.releasers.extend(futex_wire::releaser(&key, &value));
        })
        .context("Failed to read the map of releases")?;

        self.collect_spins(&mut capture);
        let zero = 0u32.to_ne_bytes();
        for cpu in maps.spin.lookup_percpu(&zero, MapFlags::ANY)?.into_iter().flatten() {
            capture.in_flight.extend(wire::spin_waits(&wire::read(&cpu)));
        }
        let mut counters = types::counters::default();
        for cpu in maps.counters.lookup_percpu(&zero, MapFlags::ANY)?.into_iter().flatten() {
            wire::add_counters(&mut counters, &wire::read(&cpu));
        }
        capture.events = wire::event_counts(&counters, self.hooks_attached());
        capture.events.waits_begun += self.early_waits();
        self.add_early_losses(&mut counters);
        capture.losses = wire::losses(&counters);
        capture.losses.extend(self.misses());
        // After the counters: it adds to them.
        each(&maps.futex_waits, |tid: u32, value: types::futex_wait| {
            futex_wire::add_wait(tid, &value, &mut capture);
        })
        .context("Failed to read the map of futex waits")?;
        Ok(capture)
    }
}

impl Tracer {
    fn collect_blame(&self, capture: &mut RawCapture) -> Result<()> {
        let maps = &self.skel().maps;
        capture.scheduler_watched = self.watches_scheduler();
        each(&maps.blames, |key: types::blame_key, value: types::blame_stats| {
            let Some(id) = wire::lock_id(&key.lock) else { return };
            blame_wire::add_holder(capture.blames.entry(id).or_default(), &key, &value);
        })
        .context("Failed to read the map of holders")?;
        each(&maps.pairs, |key: types::pair_key, waited_ns: u64| {
            let Some(id) = wire::lock_id(&key.lock) else { return };
            let pair = (blame_wire::party(&key.waiter), blame_wire::party(&key.holder), waited_ns);
            capture.blames.entry(id).or_default().pairs.push(pair);
        })
        .context("Failed to read the map of who waited for whom")?;
        each(&maps.chains, |key: types::chain_key, value: types::chain_stats| {
            let Some(id) = wire::lock_id(&key.lock) else { return };
            let chains = &mut capture.blames.entry(id).or_default().chains;
            chains.extend(blame_wire::chain(&key, &value));
        })
        .context("Failed to read the map of chains")
    }

    /// One site may have an entry on each CPU.
    fn collect_spins(&self, capture: &mut RawCapture) {
        let tables = self.spin_tables();
        let mut sites: BTreeMap<SiteId, WaitStats> = BTreeMap::new();
        for entry in tables.sites.entries::<types::spin_site>() {
            if let Some(id) = wire::site_id(&entry.key) {
                let stats = wire::wait_stats(&entry.stats, self.tells_spinning(id.lock.kind));
                sites.entry(id).or_default().merge(&stats);
            }
        }
        // Begun and not ended is in flight, not waited.
        capture.sites.extend(sites.into_iter().filter(|(_, wait)| wait.contended > 0));
        for entry in tables.locks.entries::<types::spin_lock>() {
            let Some(id) = wire::lock_id(&entry.key) else { continue };
            let place = wire::slab_place(entry.slab_cache, entry.slab_offset);
            capture.slab_places.extend(place.map(|place| (id.addr, place)));
            let lock = capture.locks.entry(id).or_default();
            lock.hist.resize(lock.hist.len().max(entry.hist.len()), 0);
            for (sum, count) in lock.hist.iter_mut().zip(entry.hist) {
                *sum += count;
            }
        }
        for entry in tables.holds.entries::<types::spin_hold>() {
            if let Some(id) = wire::lock_id(&entry.key) {
                capture.holds.entry(id).or_default().merge(&wire::hold_stats(&entry.stats));
                let place = wire::slab_place(entry.stats.slab_cache, entry.stats.slab_offset);
                capture.slab_places.extend(place.map(|place| (id.addr, place)));
            }
        }
        let since_epoch_ns = capture.stop_ns.saturating_sub(self.epoch_ns());
        for entry in tables.queues.entries::<types::spin_queue>().filter(|entry| entry.addr != 0) {
            let id = LockId { kind: LockKind::Spinlock, addr: entry.addr, pid: None };
            let blame = capture.blames.entry(id).or_default();
            blame_wire::add_spin_queue(blame, &entry, since_epoch_ns);
        }
        for entry in tables.blames.entries::<types::spin_blame>() {
            let Some(id) = wire::lock_id(&entry.key.lock) else { continue };
            blame_wire::add_holder(capture.blames.entry(id).or_default(), &entry.key, &entry.stats);
        }
        for entry in tables.stacks.entries::<types::spin_stack>() {
            if entry.id != 0 {
                capture.stacks.insert(entry.id, wire::frames(&entry.stack));
            }
        }
    }
}

fn each<K, V>(map: &impl MapCore, mut visit: impl FnMut(K, V)) -> Result<()>
where
    K: plain::Plain + Copy + Default,
    V: plain::Plain + Copy + Default,
{
    each_bytes(map, |key, value| visit(wire::read(key), wire::read(value)))
}

/// Visits every entry of a hash map.
///
/// Not libbpf-rs's `lookup_batch`: it takes a short batch for the last one, but the kernel returns
/// short batches whenever the next bucket does not fit (62 of 40 000 entries seen).
fn each_bytes(map: &impl MapCore, mut visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
    let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
    let fd = map.as_fd().as_raw_fd();
    let options = libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
        ..Default::default()
    };
    // For hashes the position is a u32 bucket number; the kernel wants room for a key too.
    let mut position = vec![0u8; key_size.max(8)];
    let mut next = position.clone();
    let mut first = true;
    let mut capacity = BATCH;
    let (mut keys, mut values) = (vec![0; capacity * key_size], vec![0; capacity * value_size]);
    loop {
        let mut count = capacity as u32;
        let from = if first { null_mut() } else { position.as_mut_ptr().cast() };
        // SAFETY: the buffers hold `capacity` keys and values, the position a whole key.
        let result = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                fd,
                from,
                next.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                &options,
            )
        };
        match -result {
            libc::ENOSPC => {
                capacity *= 2;
                keys.resize(capacity * key_size, 0);
                values.resize(capacity * value_size, 0);
                continue;
            }
            libc::EINTR => continue,
            0 | libc::ENOENT => {}
            errno => return Err(std::io::Error::from_raw_os_error(errno).into()),
        }
        let pairs = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        pairs.take(count as usize).for_each(|(key, value)| visit(key, value));
        if -result == libc::ENOENT {
            return Ok(());
        }
        std::mem::swap(&mut position, &mut next);
        first = false;
    }
}
