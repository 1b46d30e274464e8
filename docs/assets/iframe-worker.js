/* A page that is opened from a folder may not start a Worker. Here its script runs in a hidden frame, so that the search works. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.document.open();
      inside.document.write("<!doctype html><title>search</title>");
      inside.document.close();
      const send = inside.postMessage.bind(inside);
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = new URL(url, location.href).href;
      this.ready = new Promise((resolve) => { script.onload = () => resolve(send); });
      this.frame = frame;
      inside.document.head.append(script);
    }
    postMessage(data) { this.ready.then((send) => send(data, "*")); }
    terminate() { this.frame.remove(); }
  };
}
