/* The record in the business transaction: what idempo/joining.py asks of a database with a unique index.
 * docs/explanation/model.md says it in words.
 *
 * An insert waits for the transaction that has inserted the key before, until it commits or rolls back. A connection
 * that is lost leaves its transaction to the server, which commits or rolls back, sooner or later. -D bounds what goes
 * wrong: OWNERS, FAILURES (of the function), CRASHES (of a caller), CUTS (of a connection while it commits).
 */
#ifndef OWNERS
#define OWNERS 2
#endif
#ifndef FAILURES
#define FAILURES 0
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef CUTS
#define CUTS 0
#endif

#ifdef VIOLATION_IS_SUCCESS     /* a key that is there already is taken for a result, whoever may still roll back */
#define DECIDED true
#else
#define DECIDED (row == 0 || committed)
#endif

#define CALM (CRASHES == 0 && CUTS == 0)

/* the row: who inserted it, and whether that is committed; transactions that the server is left with */
byte row;
bool committed, left[OWNERS + 1], asked_to_commit[OWNERS + 1];

byte failures = FAILURES, crashes = CRASHES, cuts = CUTS;

/* what only the properties look at; effects are business writes that are committed */
byte effects, returned, failed, ended;
bool effect_of[OWNERS + 1];

inline commit(who) {
    committed = true;
    effects++; effect_of[who] = true;
    assert(effects == 1)                            /* exactly once, whatever goes wrong */
}

inline roll_back(who) {
    if :: row == who && !committed -> row = 0 :: else fi
}

inline end_of(count) { d_step { count++; ended++ } }

active [OWNERS] proctype caller() {
    byte me = _pid + 1, told;

#ifdef RECORD_AFTER_COMMIT                          /* the business writes commit, then the record, on its own */
    if
    :: row != 0 -> goto value
    :: else
    fi;
    d_step { effects++; effect_of[me] = true; assert(effects == 1) };
    if
    :: d_step { crashes > 0 -> crashes-- }; goto gone
    :: true
    fi;
    d_step { row = me; committed = true };
    goto value;
#endif

    if
    :: d_step { DECIDED && row == 0 -> row = me }
    :: d_step { DECIDED && row != 0 -> skip }; goto value
    fi;

    if                                              /* the function, in the transaction */
    :: d_step { failures > 0 -> failures--; roll_back(me) }; goto failure
    :: d_step { crashes > 0 -> crashes--; left[me] = true }; goto gone
    :: true
    fi;

    if                                              /* completion and commit */
    :: d_step { commit(me) }; goto value
    :: d_step { cuts > 0 -> cuts--; left[me] = true; asked_to_commit[me] = true }
    fi;

    /* Was it committed? Only the record itself can say so, read over another connection. */
#ifdef CUT_IS_FAILURE
    goto failure;
#endif
    if
    :: d_step { committed && row == me -> skip }; goto value
    :: d_step { !(committed && row == me) -> skip }; goto unknown
    fi;

value:
    skip;
    d_step {
        assert(row != 0 && committed && effects == 1);  /* a value only of what is committed, and one for all */
        returned++; ended++                         /* MARK value */
    };
    goto done;
failure:
    skip;
    d_step {
        assert(!effect_of[me] && !asked_to_commit[me]);  /* failed means: no effect, now or later */
        failed++; ended++                           /* MARK failure */
    };
    goto done;
unknown:
    skip;
    end_of(told);                                   /* MARK OutcomeUnknownError */
    goto done;
gone:
    skip;
    end_of(told);                                   /* MARK crashed */
done:
    skip;
    d_step { assert(ended < OWNERS || !CALM || returned + failed == OWNERS) }
}

/* What the server does with transactions whose client is gone. */
active [OWNERS] proctype server() {
    byte me = _pid - OWNERS + 1;
end:
    do
    :: d_step { left[me] && asked_to_commit[me] -> left[me] = false; commit(me) }   /* MARK committed late */
    :: d_step { left[me] -> left[me] = false; roll_back(me) }
    :: ended == OWNERS && !left[me] -> break
    od
}
