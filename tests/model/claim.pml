/* Claim, lease, fence, takeover and completion of one key: what idempo/protocol.py asks of a ledger, and what
 * idempo/strategies/memory.py, scripts.py and sql.py answer. docs/explanation/model.md says it in words.
 *
 * Each request is one d_step: the store decides it alone. Between two steps of a caller anything may happen, so a
 * stall needs nothing of its own, and a request that is lost is one that is not sent yet. A lost reply is something
 * else: the store has acted, and the same owner asks again.
 *
 * -D bounds what goes wrong: OWNERS, LOSSES (replies), CRASHES, FAILURES (of the function), FORGETS (or the end of
 * the retention); EXPIRY=1: a lease may also end under an owner that lives; REFUSE=1: on_orphan="refuse".
 * -D also builds in one of the mistakes named below.
 */
#ifndef OWNERS
#define OWNERS 2
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef FAILURES
#define FAILURES 0
#endif
#ifndef FORGETS
#define FORGETS 0
#endif
#ifndef EXPIRY
#define EXPIRY 0
#endif
#ifndef REFUSE
#define REFUSE 0
#endif

/* states of the record, and answers to a claim */
#define ABSENT 0
#define RUNNING 1
#define COMPLETED 2
#define RELEASED 3
#define CLAIMED 4
#define REPLAYED 5
#define IN_PROGRESS 6
#define ORPHAN 7

/* ---- the right decision, or the mistake */

#ifdef RETRY_NOT_RECOGNISED     /* the own claim, sent again after a lost reply, is taken for somebody else's */
#define OWN false
#else
#define OWN (owner == me)
#endif

#ifdef NO_OWNER_CHECK           /* complete does not compare */
#define MAY_COMPLETE (state == RUNNING || state == COMPLETED)
#else
#define MAY_COMPLETE (owner == me && (state == RUNNING || state == COMPLETED))
#endif

#ifdef RELEASE_BY_ANYONE        /* release does not compare */
#define MAY_RELEASE (state == RUNNING)
#else
#define MAY_RELEASE (state == RUNNING && owner == me)
#endif

#ifdef CLIENT_CLOCK_LEASE       /* the caller judges the lease, by a clock that is ahead of the store's */
#define HELD false
#else
#ifdef TAKEOVER_WITHOUT_OVER    /* whoever has seen an orphan takes the record, as it is by now */
#define HELD (alive && over == 0)
#else
#define HELD alive
#endif
#endif

#ifdef TAKEOVER_WITHOUT_OVER
#define ACCEPTED (over != 0)
#else
#define ACCEPTED (over == fence)
#endif

#ifdef NO_FENCE_CHECK_IN_TABLE
#define TAKEN true
#else
#define TAKEN (mine >= table_fence)
#endif

#ifndef FENCE_RESET             /* a state of the record after which fences begin at 1 again */
#define FENCE_RESET 255
#endif

/* ---- the record, as the store has it, and the business table, which takes no lower fence than it has seen */

byte state = ABSENT, owner, fence, result;
bool alive;                     /* the lease, by the store's clock */
byte clock;                     /* the base of fences: it goes on where the record itself is gone */
byte table_fence;

/* what may still go wrong, and who is at work */
byte losses = LOSSES, crashes = CRASHES, failures = FAILURES, forgets = FORGETS;
bool beating[OWNERS + 1], crashed[OWNERS + 1];

/* what only the properties look at */
byte claims, newest;            /* how many there were, and the highest fence of all */
byte holder;                    /* whose the key is by the order of events, whatever the record says */
byte number[OWNERS + 1];        /* of the claim that this owner was granted */
byte written;                   /* the number of the claim whose business write was taken last */
byte effects, first, returned, failed, ended;

#define CALM (EXPIRY == 0 && CRASHES == 0 && FORGETS == 0)

/* ---- the requests of a ledger */

inline grant() {
    assert(!(state == RUNNING && alive));           /* SINGLE CLAIM: nobody holds the key under a lease */
    claims++;
    clock++;
    fence = (state == FENCE_RESET -> 1 : clock);
    assert(fence > newest);                         /* each claim has a larger fence */
    newest = fence;
    state = RUNNING; owner = me; alive = true; result = 0;
    holder = me; number[me] = claims;
    mine = fence; answer = CLAIMED
}

inline claim() {
    d_step {
        if
        :: state == COMPLETED ->
            answer = REPLAYED;
            assert(result == first)                 /* ONE RESULT */
#ifdef RECORD_AFTER_EFFECT_ONLY                     /* look up, run, write: no claim */
        :: else -> claims++; clock++; number[me] = claims; mine = clock; answer = CLAIMED
#else
        :: state == RUNNING && OWN -> mine = fence; answer = CLAIMED
        :: state == RUNNING && !OWN && HELD -> answer = IN_PROGRESS
        :: state == RUNNING && !OWN && !HELD && !ACCEPTED -> answer = ORPHAN; seen = fence
        :: else -> grant()
#endif
        fi
    }
}

inline complete() {
    d_step {
#ifdef RECORD_AFTER_EFFECT_ONLY
        state = COMPLETED; owner = me; result = me; holder = me; kept = true;
#else
        kept = MAY_COMPLETE;
        if
        :: kept -> state = COMPLETED; result = me
        :: else
        fi;
#endif
        assert(kept == (holder == me));             /* STALE OWNERS ARE POWERLESS, and told so */
        if
        :: kept ->
            if :: first == 0 -> first = me :: else fi;
            assert(result == first)                 /* ONE RESULT */
        :: else
        fi
    }
}

inline release() {
    d_step {
        if
        :: MAY_RELEASE ->
            assert(holder == me);                   /* STALE OWNERS ARE POWERLESS */
            state = RELEASED; alive = false; holder = 0
        :: else
        fi
    }
}

inline renew() {
    d_step {
        if
        :: state == RUNNING && owner == me ->
            assert(holder == me);                   /* STALE OWNERS ARE POWERLESS */
            alive = true
        :: else
        fi
    }
}

/* ---- the function: an effect abroad, which nothing can undo, and a write to the business table, with the fence */

inline effect() {
    d_step {
        effects++;
        assert(effects <= claims);                  /* rerun: no more effects than claims */
        assert(!CALM || effects == 1);              /* nothing went wrong but replies and functions: exactly once */
        assert(!REFUSE || FORGETS || effects == 1); /* refuse: at most once */
        if
        :: TAKEN ->
            assert(number[me] >= written);          /* the table never takes a late write */
            table_fence = mine; written = number[me]
        :: else
        fi
    }
}

inline end_of(count) {
    d_step {
        count++; ended++; beating[me] = false;
        assert(!returned || effects > 0);           /* no value without an effect */
        assert(ended < OWNERS || !CALM || returned + failed == OWNERS)     /* WAITERS TAKE OVER: all are answered */
    }
}

/* protocol.once: claim, run, complete; or replay, or wait, or refuse */
active [OWNERS] proctype caller() {
    byte me = _pid + 1, over, mine, answer, seen, told;
    bool kept;

claiming:
    skip;
    claim();
    if
    :: true
    :: d_step { losses > 0 -> losses-- }; goto claiming        /* the reply is lost: the same owner asks again */
    :: d_step { crashes > 0 -> crashes--; crashed[me] = true }; goto crash
    fi;
    if
    :: answer == CLAIMED -> goto running
    :: answer == REPLAYED -> goto replay
    :: answer == IN_PROGRESS ->
#ifdef WAITER_DELETES_CLAIM
        d_step { if :: state == RUNNING -> state = ABSENT; owner = 0; alive = false :: else fi };
#endif
        goto claiming
    :: answer == ORPHAN && REFUSE -> goto refused
    :: answer == ORPHAN && !REFUSE -> over = seen; goto claiming
    fi;

running:
    beating[me] = true;
    if
    :: over != 0 -> skip                            /* MARK took over */
    :: else
    fi;
    if
    :: d_step { crashes > 0 -> crashes--; crashed[me] = true }; goto crash
    :: d_step { failures > 0 -> failures-- }; goto releasing   /* the function fails, without an effect */
    :: true
    fi;
    effect();
    if
    :: d_step { crashes > 0 -> crashes--; crashed[me] = true }; goto crash
    :: true
    fi;

completing:
    skip;
    complete();
    if
    :: true
    :: d_step { losses > 0 -> losses-- }; goto completing
    :: d_step { crashes > 0 -> crashes--; crashed[me] = true }; goto crash
    fi;
    if
    :: kept -> goto value
    :: else -> goto lost
    fi;

releasing:
    skip;
    release();
    if
    :: true
    :: d_step { losses > 0 -> losses-- }; goto releasing
    :: d_step { crashes > 0 -> crashes--; crashed[me] = true }; goto crash
    fi;
    end_of(failed);
    goto done;

value:
    skip;
    end_of(returned);                               /* MARK ran and returned */
    goto done;
replay:
    skip;
    end_of(returned);                               /* MARK replayed */
    goto done;
lost:
    skip;
    end_of(told);                                   /* MARK LeaseLostError */
    goto done;
refused:
    skip;
    end_of(told);                                   /* MARK OutcomeUnknownError */
    goto done;
crash:
    skip;
    end_of(told);                                   /* MARK crashed */
done:
    skip
}

/* The heartbeat of an owner. One that was sent before the end may arrive after it. */
active [OWNERS] proctype heart() {
    byte me = _pid - OWNERS + 1;
end:
    do
    :: beating[me] -> renew()                       /* MARK renewed */
    :: ended == OWNERS -> break
    od
}

/* Ends leases. */
active proctype time() {
end:
    do
    :: d_step { state == RUNNING && alive && (EXPIRY || crashed[owner]) -> alive = false }
    :: ended == OWNERS -> break
    od
}

/* Ledger.forget, or the retention is over: never of a claim under a lease. */
active proctype keep() {
    byte as_seen;
end:
    do
    :: d_step {
        forgets > 0 && (state == COMPLETED || state == RELEASED || (state == RUNNING && !alive)) ->
        forgets--;
#ifdef FORGET_IN_TWO_STEPS                          /* read, judge, then delete what has this fence and this state */
        as_seen = state }
       d_step {
        state == as_seen ->
        assert(!(state == RUNNING && alive));       /* a claim under a lease is never deleted */
#endif
        state = ABSENT; owner = 0; result = 0; alive = false; holder = 0; first = 0 }
    :: ended == OWNERS -> break
    od
}
