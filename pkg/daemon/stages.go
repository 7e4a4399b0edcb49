package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// afterDeadline is how long stages that have not had their turn get to leave
// once the time for stopping in order is over.
const afterDeadline = time.Second

// Stages are the parts of a process, each a function that runs until it is told
// to stop. They start in the order in which they were added, and stop in the
// reverse order, one after the other: a stage is told to stop only when those
// added after it, which may depend on it, have left.
//
//	stages := daemon.NewStages(logger, cfg.ShutdownTimeout)
//	stages.Add("database", func(ctx context.Context) error {
//		<-ctx.Done()
//		pool.Close()
//		return nil
//	})
//	stages.Add("catalog", catalog.Run)
//	stages.Add("intake", intake.Run)
//	stages.AddDrained("http", daemon.Serve(server, listener))
//	stages.AddDrained("readiness", health.Withdraw(cfg.ShutdownDelay))
//	return stages.Run(ctx)
//
// turns readiness off first, then finishes the requests under way, then commits
// what was accepted, and closes the pool last.
//
// A stage that returns before it was told to stop, with or without an error, ends
// the process: all others stop, in order. Listeners are opened and connections
// made before Run, so that a stage is usable from the moment it starts.
type Stages struct {
	logger  *slog.Logger
	timeout time.Duration
	list    []*stage
}

type stage struct {
	name string
	run  func(ctx, drain context.Context) error

	// Run's goroutine owns what follows.
	cancel context.CancelFunc
	left   chan struct{} // closed once err is set
	err    error         // written by the stage's goroutine before left is closed
}

// NewStages makes an empty list. timeout is how long stopping in order may take
// in all: beyond it everything left is told to stop at once, gets one second
// more, and Run returns without what has still not left.
func NewStages(logger *slog.Logger, timeout time.Duration) *Stages {
	return &Stages{logger: logger, timeout: timeout}
}

// Add adds a stage. run blocks until ctx ends, and returns once everything it
// started is gone. Once it was told to stop, context.Canceled is not an error.
func (s *Stages) Add(name string, run func(ctx context.Context) error) {
	s.AddDrained(name, func(ctx, _ context.Context) error {
		return unlessStopped(ctx, run(ctx))
	})
}

// AddDrained adds a stage that has work to finish when it is told to stop: ctx
// ends when it should take nothing new, and drain when the time for what it has
// is over. drain never ends before ctx does. context.Canceled is not an error
// between the two; after drain has ended it says that something was cut off.
func (s *Stages) AddDrained(name string, run func(ctx, drain context.Context) error) {
	s.list = append(s.list, &stage{name: name, run: func(ctx, drain context.Context) error {
		err := run(ctx, drain)
		if drain.Err() != nil {
			return err
		}
		return unlessStopped(ctx, err)
	}})
}

func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Run starts the stages and blocks until all have left, which happens when ctx
// ends or the first of them returns. It returns the stages' errors, joined, each
// with the name of its stage; nil is an orderly stop.
func (s *Stages) Run(ctx context.Context) error {
	if len(s.list) == 0 {
		return errors.New("there is nothing to run")
	}
	base := context.WithoutCancel(ctx)
	drain, endDrain := context.WithCancel(base)
	defer endDrain()
	first := make(chan *stage, len(s.list))
	for _, one := range s.list {
		var stageCtx context.Context
		stageCtx, one.cancel = context.WithCancel(base)
		defer one.cancel()
		one.left = make(chan struct{})
		go func() {
			one.err = one.run(stageCtx, drain)
			first <- one
			close(one.left)
		}()
	}

	select {
	case <-ctx.Done():
		s.logger.Info("stopping", slog.Any("cause", context.Cause(ctx)), slog.Duration("timeout", s.timeout))
	case one := <-first:
		s.logger.Info("stopping", slog.String("cause", one.name+" has ended"), slog.Duration("timeout", s.timeout))
	}
	return s.stop(base, endDrain)
}

// stop stops the stages, last one first.
func (s *Stages) stop(base context.Context, endDrain context.CancelFunc) error {
	began := time.Now()
	inOrder, cancel := context.WithTimeout(base, s.timeout)
	defer cancel()
	inAll, cancel := context.WithTimeout(base, s.timeout+afterDeadline)
	defer cancel()

	var errs []error
	for i, one := range slices.Backward(s.list) {
		one.cancel()
		select {
		case <-one.left:
		case <-inOrder.Done():
			// Time is up: everybody at once, and a moment to leave.
			endDrain()
			for _, rest := range s.list[:i] {
				rest.cancel()
			}
			select {
			case <-one.left:
			case <-inAll.Done():
			}
		}
		select {
		case <-one.left:
			if one.err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", one.name, one.err))
			}
			s.logger.Debug("stopped", slog.String("stage", one.name), slog.Duration("after", time.Since(began)))
		default:
			errs = append(errs, fmt.Errorf("%s has not stopped within %s", one.name, s.timeout))
		}
	}
	return errors.Join(errs...)
}
