//! Who made the others wait, below the table of locks: the holders of the locks waited for most, who waited
//! for whom, what is behind a holder that was waiting itself, and whether it all adds up.

use super::flamegraph::short_name;
use super::label::Labels;
use super::stacks;
use super::table::write_wrapped;
use super::text::{clean, elide, pad_left, width, wrap};
use super::who::named;
use crate::model::{
    Account, Blame, BlameGap, Cause, Chain, Conservation, Evidence, Holder, HolderStates, Lock, Pair, Party,
    Profile, Root, StackRef, Thread, accounts, roots,
};
use crate::units::{self, count, duration, percent};
use std::collections::HashSet;
use std::io::{self, Write};

pub(super) const NO_ACCOUNT: &str = "Who held the locks is not known: this profile has no account of it. `lockprof doctor` says what can be had.";

/// Locks whose holders are listed, and lines for each of them.
const LOCKS: usize = 3;
const LINES: usize = 4;
const PAIRS: usize = 4;
const CHAINS: usize = 3;
/// Roots of a chain that are named.
const ROOTS: usize = 2;
/// States of a holder that are named, and the share below which none is.
const STATES: usize = 3;
const SMALLEST_STATE: f64 = 0.05;

/// Locks of which an account, their own or that of their other side, tells who held them.
pub(super) fn accounted(profile: &Profile) -> HashSet<*const Lock> {
    let told = accounts(profile).into_iter().filter(|account| account.blame.is_some_and(says_something));
    told.flat_map(|account| account.rows.into_iter().map(std::ptr::from_ref)).collect()
}

/// Spinlocks and others have an account that says only that it is none.
fn says_something(blame: &Blame) -> bool {
    blame.accounted_ns() > 0
        && (blame.blamed_ns() + blame.handoff_ns + blame.unreleased_ns > 0
            || blame.unattributed.iter().any(|part| part.reason != BlameGap::NoReleaseEvent))
}

/// What every section needs.
struct Page<'a> {
    profile: &'a Profile,
    labels: Labels,
    columns: usize,
}

impl Page<'_> {
    fn lock(&self, lock: &Lock) -> String {
        self.labels.typed(lock, self.columns / 2)
    }

    /// ` in evict`, or nothing without a stack.
    fn place(&self, lock: &Lock, kernel: StackRef, user: StackRef) -> String {
        match stacks::place_of(self.profile, lock, kernel, user).first() {
            Some(function) => format!(" in {}", elide(&clean(&short_name(function)), self.columns / 2)),
            None => String::new(),
        }
    }

    fn thread(&self, thread: &Thread) -> String {
        elide(&named(&thread.comm, thread.tid), self.columns / 2)
    }

    /// A name in a sentence: a thread may be called `for` or `lock`.
    fn quoted(&self, comm: &str) -> String {
        format!("`{}`", elide(&clean(comm), self.columns / 3))
    }

    fn party(&self, lock: &Lock, party: &Party) -> String {
        format!("{}{}", self.quoted(&party.comm), self.place(lock, party.kernel_stack, party.user_stack))
    }
}

pub(super) fn write_sections(
    profile: &Profile,
    rows: &[&Lock],
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let page = Page { profile, labels: Labels::of(rows), columns };
    let Some(conservation) = Conservation::of(profile) else { return Ok(()) };
    let accounts = accounts(profile);
    let mut told: Vec<(&Account, &Blame)> = accounts
        .iter()
        .filter_map(|account| {
            account.blame.filter(|blame| says_something(blame)).map(|blame| (account, blame))
        })
        .collect();
    told.sort_by_key(|(_, blame)| std::cmp::Reverse(blame.accounted_ns()));
    if !told.is_empty() {
        writeln!(out, "Who made them wait:")?;
        let largest = told.iter().take(LOCKS).collect();
        for (account, blame) in
            worth_telling(largest, conservation.waited_ns, |(_, blame)| blame.accounted_ns())
        {
            write_account(&page, account, blame, out)?;
        }
        writeln!(out)?;
    }
    write_pairs(&page, &told, out)?;
    write_chains(&page, &accounts, &told, out)?;
    write_wrapped(&identity(&conservation), columns, 4, out)?;
    writeln!(out)
}

/// `waited 12.3s = held by others 10.1s + handoff 1.20s + …`: computed from both sides.
pub(super) fn identity(sums: &Conservation) -> String {
    let parts = [
        (sums.handoff_ns, "handoff"),
        (sums.unattributed_ns, "not attributed"),
        (sums.unreleased_ns, "not released at the end"),
    ];
    let uncounted = match sums.uncounted_ns {
        0 => String::new(),
        ns => format!(" + {} of waits whose end was not seen", duration(ns)),
    };
    let mut text = format!(
        "waited {}{uncounted} = held by others {}",
        duration(sums.waited_ns),
        duration(sums.blamed_ns)
    );
    for (ns, what) in parts.into_iter().filter(|(ns, _)| *ns > 0) {
        text += &format!(" + {what} {}", duration(ns));
    }
    text + &match sums.difference_ns() {
        0 => " (exact)".to_string(),
        missing @ 1.. => format!(" (differs by {missing} ns that are in no account)"),
        more => format!(" (differs by {} ns that nobody waited)", more.unsigned_abs()),
    }
}

/// Of what is sorted by time, what is at least a hundredth of all waits; the largest anyhow.
pub(super) fn worth_telling<T>(mut all: Vec<T>, waited_ns: u64, ns: impl Fn(&T) -> u64) -> Vec<T> {
    let told = all.iter().take_while(|one| ns(one) >= waited_ns / 100).count().max(1);
    all.truncate(told);
    all
}

/// A line of an account, and its share.
struct Entry {
    ns: u64,
    text: String,
}

fn write_account(page: &Page, account: &Account, blame: &Blame, out: &mut dyn Write) -> io::Result<()> {
    let (lock, columns) = (account.rows[0], page.columns);
    let sides = if account.rows.len() > 1 { ", both sides" } else { "" };
    let woken: Option<u64> =
        account.rows.iter().filter_map(|row| row.woken_to_running_ns).reduce(|a, b| a + b);
    let woken = match woken {
        Some(ns) if ns > 0 => format!("; {} of it after being woken: the scheduler's", duration(ns)),
        _ => String::new(),
    };
    let heading = format!("{}{sides}: waited {}{woken}", page.lock(lock), duration(account.waited_ns()));
    write_wrapped(&heading, columns, 4, out)?;
    let entries = entries(page, lock, blame);
    let whole = blame.accounted_ns().max(1) as f64;
    let listed = &entries[..entries.len().min(LINES)];
    for entry in listed {
        write_share(entry.ns, whole, &entry.text, columns, out)?;
    }
    let rest = &entries[listed.len()..];
    if !rest.is_empty() {
        write_share(
            rest.iter().map(|entry| entry.ns).sum(),
            whole,
            &format!("{} more", rest.len()),
            columns,
            out,
        )?;
    }
    Ok(())
}

fn write_share(ns: u64, whole: f64, text: &str, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let share = pad_left(&percent(ns as f64 / whole), units::PERCENT_WIDTH);
    let time = pad_left(&duration(ns), units::DURATION_WIDTH);
    write_hanging(&format!("  {share}  {time}  "), text, columns, out)
}

/// A text beside what stands before it.
pub(super) fn write_hanging(before: &str, text: &str, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let indent = width(before);
    let mut before = before.to_string();
    for line in wrap(&clean(text), columns.saturating_sub(indent), 2) {
        writeln!(out, "{before}{line}")?;
        before = " ".repeat(indent);
    }
    Ok(())
}

fn entries(page: &Page, lock: &Lock, blame: &Blame) -> Vec<Entry> {
    let mut entries: Vec<Entry> = blame
        .holders
        .iter()
        .map(|holder| {
            let took = match holder.evidence {
                Evidence::Release => "",
                Evidence::Acquire => " that took it",
            };
            let place = page.place(lock, holder.kernel_stack, holder.user_stack);
            let why = why_slow(holder).map(|why| format!(": {why}")).unwrap_or_default();
            Entry { ns: holder.blamed_ns, text: format!("{}{took}{place}{why}", page.thread(&holder.thread)) }
        })
        .collect();
    let handoff = format!("handoff, {}: nobody held it", times(blame.handoffs));
    entries.push(Entry { ns: blame.handoff_ns, text: handoff });
    for part in &blame.unattributed {
        let owner = part.thread.as_ref().map(|thread| format!(" ({})", page.thread(thread)));
        let text = format!("not attributed: {}{}", part.reason.words(), owner.unwrap_or_default());
        entries.push(Entry { ns: part.waited_ns, text });
    }
    let unreleased = match &blame.unreleased_by {
        Some(thread) => format!("not released at the end by {}", page.thread(thread)),
        None => "not released at the end; who held it is not known".to_string(),
    };
    entries.push(Entry { ns: blame.unreleased_ns, text: unreleased });
    entries.retain(|entry| entry.ns > 0);
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.ns));
    entries
}

fn times(n: u64) -> String {
    if n == 1 { "once".to_string() } else { format!("{} times", count(n)) }
}

/// `io 62%, running 30%`; `None` where the scheduler was not watched.
fn why_slow(holder: &Holder) -> Option<String> {
    let states = holder.states?;
    let whole = whole_of(&states, holder.wanted_ns);
    let mut parts = [
        (states.running_ns, "running"),
        (states.runnable_ns, "runnable"),
        (states.io_ns, "io"),
        (states.lock_ns, "waiting for a lock"),
        (states.blocked_ns, "blocked"),
        (holder.wanted_ns.saturating_sub(states.total_ns()), "not known"),
    ];
    parts.sort_by_key(|(ns, _)| std::cmp::Reverse(*ns));
    let told = parts.iter().map(|(ns, state)| (*ns as f64 / whole, state));
    let told = told.take(STATES).filter(|(share, _)| *share >= SMALLEST_STATE);
    let told: Vec<String> = told.map(|(share, state)| format!("{state} {:.0}%", share * 100.0)).collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// What shares of states are taken of.
pub(super) fn whole_of(states: &HolderStates, wanted_ns: u64) -> f64 {
    wanted_ns.max(states.total_ns()).max(1) as f64
}

fn write_pairs(page: &Page, told: &[(&Account, &Blame)], out: &mut dyn Write) -> io::Result<()> {
    let pairs =
        told.iter().flat_map(|(account, blame)| blame.pairs.iter().map(|pair| (account.rows[0], pair)));
    let mut pairs: Vec<(&Lock, &Pair)> = pairs.filter(|(_, pair)| pair.waited_ns > 0).collect();
    if pairs.is_empty() {
        return Ok(());
    }
    pairs.sort_by_key(|(_, pair)| std::cmp::Reverse(pair.waited_ns));
    writeln!(out, "Who waited for whom:")?;
    for (lock, pair) in pairs.iter().take(PAIRS) {
        let (waiter, holder) = (page.party(lock, &pair.waiter), page.party(lock, &pair.holder));
        let waited = duration(pair.waited_ns);
        let sentence = format!("{waiter} waited {waited} for {holder} [{}]", page.lock(lock));
        write_hanging("  ", &sentence, page.columns, out)?;
    }
    if let Some((rest, ns)) = rest(&pairs, PAIRS, |(_, pair)| pair.waited_ns) {
        write_hanging("  ", &format!("… and {rest} more pairs, {}", duration(ns)), page.columns, out)?;
    }
    writeln!(out)
}

/// How many are not shown, and their time.
fn rest<T>(all: &[T], shown: usize, ns: impl Fn(&T) -> u64) -> Option<(usize, u64)> {
    let rest = all.get(shown..).filter(|rest| !rest.is_empty())?;
    Some((rest.len(), rest.iter().map(ns).sum()))
}

fn write_chains(
    page: &Page,
    all: &[Account],
    told: &[(&Account, &Blame)],
    out: &mut dyn Write,
) -> io::Result<()> {
    let chains =
        told.iter().flat_map(|(account, blame)| blame.chains.iter().map(|chain| (account.rows[0], chain)));
    let mut chains: Vec<(&Lock, &Chain)> = chains.filter(|(_, chain)| chain.waited_ns > 0).collect();
    if chains.is_empty() {
        return Ok(());
    }
    chains.sort_by_key(|(_, chain)| std::cmp::Reverse(chain.waited_ns));
    writeln!(out, "{}", elide("Holders that were waiting themselves:", page.columns))?;
    for (lock, chain) in chains.iter().take(CHAINS) {
        let other = page.profile.locks.iter().find(|other| is_next(chain, other));
        let other = match other {
            Some(other) => page.lock(other),
            None => format!("{} {:#x}", chain.kind.name(), chain.addr),
        };
        let sentence = format!(
            "{} held {} and waited for {other}: {} of the blame. Root: {}",
            page.quoted(&chain.through.comm),
            page.lock(lock),
            duration(chain.waited_ns),
            root_words(page, chain, &roots(all, lock, chain)),
        );
        write_hanging("  ", &sentence, page.columns, out)?;
    }
    if let Some((rest, ns)) = rest(&chains, CHAINS, |(_, chain)| chain.waited_ns) {
        write_hanging("  ", &format!("… and {rest} more, {}", duration(ns)), page.columns, out)?;
    }
    writeln!(out)
}

/// Either side of it.
fn is_next(chain: &Chain, lock: &Lock) -> bool {
    (lock.kind.family(), lock.addr, lock.pid) == (chain.kind.family(), chain.addr, chain.pid)
}

/// `` `gc` in compact [mutex heap] 80%, handoff 20% ``
fn root_words(page: &Page, chain: &Chain, roots: &[Root]) -> String {
    let share = |ns: u64| percent(ns as f64 / chain.waited_ns.max(1) as f64);
    let mut words: Vec<String> = roots
        .iter()
        .take(ROOTS)
        .map(|root| {
            let who = match (root.cause, root.lock) {
                (Cause::Holder(party), Some(lock)) => page.party(lock, party),
                (Cause::Thread(holder), Some(lock)) => {
                    let place = page.place(lock, holder.kernel_stack, holder.user_stack);
                    format!("{}{place}", page.quoted(&holder.thread.comm))
                }
                (Cause::Handoff, _) => "handoff".to_string(),
                (Cause::Unattributed, _) => "not attributed".to_string(),
                (Cause::Unreleased, _) => "not released at the end".to_string(),
                (Cause::Endless, _) => "a circle of waits".to_string(),
                (Cause::Unknown | Cause::Holder(_) | Cause::Thread(_), _) => "not known".to_string(),
            };
            // The lock that the chain names needs no second mention.
            let beyond = root.lock.filter(|lock| !is_next(chain, lock));
            let lock = beyond.map(|lock| format!(" [{}]", page.lock(lock))).unwrap_or_default();
            format!("{who}{lock} {}", share(root.waited_ns))
        })
        .collect();
    if let Some((_, ns)) = rest(roots, ROOTS, |root| root.waited_ns) {
        words.push(format!("others {}", share(ns)));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::profile;

    fn sections(profile: &Profile) -> String {
        let rows: Vec<&Lock> = crate::render::View::Contention.rows(profile).collect();
        let mut out = Vec::new();
        write_sections(profile, &rows, 300, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_identity_is_printed_with_what_it_is_made_of() {
        let mut sums = Conservation {
            uncounted_ns: 0,
            waited_ns: 12_300_000_000,
            blamed_ns: 10_100_000_000,
            handoff_ns: 1_200_000_000,
            unattributed_ns: 900_000_000,
            unreleased_ns: 100_000_000,
        };
        assert_eq!(
            identity(&sums),
            "waited 12.3s = held by others 10.1s + handoff 1.20s + not attributed 900ms + \
             not released at the end 100ms (exact)"
        );
        sums.uncounted_ns = 2_000_000_000;
        assert!(
            identity(&sums).starts_with("waited 12.3s + 2.00s of waits whose end was not seen = held by")
        );
        sums.uncounted_ns = 0;
        sums.waited_ns += 5;
        sums.unreleased_ns = 0;
        assert!(identity(&sums).ends_with("900ms (differs by 100000005 ns that are in no account)"));
    }

    #[test]
    fn holders_are_listed_with_place_and_why() {
        let text = sections(&profile());
        assert!(text.contains(
            "umutex demo`CACHE+0x10: waited 6.93s; 412ms of it after being woken: the scheduler's\n"
        ));
        assert!(
            text.contains(
                "demo-gc (tid 4249) in demo::cache::Cache::evict: io 62%, running 30%, runnable 8%\n"
            )
        );
        assert!(text.contains("not released at the end by demo-main (tid 4249)\n"));
    }

    #[test]
    fn pairs_and_chains_are_sentences() {
        let text = sections(&profile());
        assert!(text.contains("`demo-io-2` in demo::cache::Cache<…>::get_or_insert_with waited 1.45s for `demo-gc` in demo::cache::Cache::evict [umutex demo`CACHE+0x10]\n"), "{text}");
        let chain = text.lines().find(|line| line.contains("`demo-io-2` held umutex demo`CACHE+0x10"));
        let chain = chain.unwrap();
        assert!(
            chain.contains(" and waited for mutex pipe_write …2468: 1.20s of the blame. Root: "),
            "{chain}"
        );
        // demo-log, which had the pipe, was itself waiting for demo's mmap_lock.
        assert!(chain.contains("`demo` in __vm_munmap [rwsem:W mmap_lock] "), "{chain}");
    }

    #[test]
    fn what_only_says_that_nothing_is_known_is_not_listed() {
        let mut profile = profile();
        profile.locks.retain(|lock| lock.kind == crate::model::LockKind::Spinlock);
        assert!(!profile.locks.is_empty());
        let text = sections(&profile);
        assert!(
            text.starts_with("waited ") && text.contains("= held by others 0ns + not attributed"),
            "{text}"
        );
        assert!(accounted(&profile).is_empty());
        profile.locks.iter_mut().for_each(|lock| lock.blame = None);
        assert_eq!(sections(&profile), "");
    }
}
